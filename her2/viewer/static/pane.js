// A slide on the page: a Leaflet map in level-0 px, and the panel of sections beside it.
import { element, getJSON, slideURL, state } from "./common.js";
import { Overview } from "./overview.js";
import { Readout } from "./readout.js";
import { SlideMap, Squares } from "./squares.js";
import { tools } from "./tools.js";

const L = window.L;

/** Zoom beyond full resolution, up to 8 screen px a px. */
const MOST = 3;
/** The address is changed when a movement has ended, not at each step of it. */
const SETTLED_MS = 250;

/**
 * What the address says of a pane: the names of the second one end in 2.
 * A panel keeps its state with `pane.state`, so that two panes do not mix.
 */
function stateOf(number) {
  const own = (name) => (number > 1 ? `${name}${number}` : name);
  return {
    get: (name, otherwise = null) => state.get(own(name), otherwise),
    set: (values) => state.set(
      Object.fromEntries(Object.entries(values).map(([name, value]) => [own(name), value]))),
  };
}

/**
 * Events, with their detail:
 * "pick", {x, y} in level-0 px: somebody clicks on the slide, or presses Enter for its centre;
 * "tile", what the server says of the tile that is chosen now, or null; also in `tile` of the pane;
 * "model", {model}: the key of the model whose layers are shown, or null;
 * "choice": another model, fold, class or scale is shown, see `choices` of layers.js;
 * "escape": somebody lets go of what is chosen.
 */
export class Pane extends EventTarget {
  constructor(cohort, slideId, facts, number = 1) {
    super();
    const own = stateOf(number);
    const asked = own.get("model");
    const model = facts.models.includes(asked) ? asked : null;
    Object.assign(this, { cohort, slideId, facts, number, state: own, model });
    const id = `panel-${number}`;
    this.canvas = element("div", { class: "map", tabindex: "0", role: "application",
      "aria-roledescription": "slide", "aria-label": `Slide ${slideId}: arrow keys move, plus and `
      + "minus zoom, 0 shows all of it, 1 is full resolution, Enter picks the tile in the centre" });
    this.alert = element("div", { class: "problem", role: "alert" });
    this.panel = element("aside", { class: "panel", id, "aria-label": `About ${slideId}` });
    this.stage = element("div", { class: "stage" });
    this.root = element("section", { class: "pane", "aria-label": `Slide ${slideId}` },
      element("div", { class: "inner" }, this.stage, this.panel));
  }

  static async open(cohort, slideId, into, number = 1) {
    const facts = await getJSON(slideURL("/api", cohort, slideId));
    const pane = new Pane(cohort, slideId, facts, number);
    into.append(pane.root);
    pane.start();
    return pane;
  }

  start() {
    const { facts } = this;
    const [width, height] = facts.extent_px;
    this.stage.append(tools(this), this.alert, this.canvas);
    const lowest = -Math.ceil(Math.log2(Math.max(width, height))) - 1;
    this.map = new SlideMap(this.canvas, {
      crs: L.CRS.Simple, minZoom: lowest, maxZoom: MOST, zoomSnap: 0, attributionControl: false,
      zoomControl: false, keyboard: false, zoomAnimation: false, fadeAnimation: false, trackResize: false,
      inertia: !matchMedia("(prefers-reduced-motion: reduce)").matches,
    });
    this.canvas.setAttribute("tabindex", "0");
    this.bounds = L.latLngBounds(this.toLatLng(0, height), this.toLatLng(width, 0));
    L.rectangle(this.bounds, { interactive: false, fill: !facts.zoom, weight: 1, color: "#888",
      className: "extent" }).addTo(this.map);
    if (facts.zoom) this.#addSquares();
    if (facts.problem) this.#problem({ error: facts.problem, damaged: false });
    this.map.on("zoom viewreset", () =>
      this.canvas.classList.toggle("beyond", this.map.getZoom() > 0));
    this.#restore();
    this.readout = new Readout(this);
    if (facts.zoom) new Overview(this);
    this.map.on("click", (event) => this.pick(this.toLevel0(event.latlng)));
    this.map.on("move zoom", () => { this.fitted &&= this.fitting; });
    this.map.on("moveend", () => {
      clearTimeout(this.settled);
      this.settled = setTimeout(() => this.keepPlace(), SETTLED_MS);
    });
    new ResizeObserver(() => this.#resize()).observe(this.canvas);
  }

  /** Level-0 px to Leaflet: y goes down on a slide and up on a map. */
  toLatLng(x, y) { return L.latLng(-y, x); }

  toLevel0(latlng) { return { x: latlng.lng, y: -latlng.lat }; }

  /** Bounds [left, top, right, bottom] in level-0 px to Leaflet. */
  toBounds([left, top, right, bottom]) {
    return L.latLngBounds(this.toLatLng(left, bottom), this.toLatLng(right, top));
  }

  /** The centre of what is seen, {x, y} in level-0 px. */
  get centre() { return this.toLevel0(this.map.getCenter()); }

  /** Show a place, in level-0 px; `zoom` as in Leaflet, and as it is where it is left out. */
  show({ x, y }, zoom = this.map.getZoom()) {
    this.map.setView(this.toLatLng(x, y), zoom);
  }

  /** Show the whole slide. */
  fit() {
    this.fitting = this.fitted = true;
    this.map.fitBounds(this.bounds);
    this.fitting = false;
  }

  /** Somebody picked a place, in level-0 px. */
  pick({ x, y }) { this.emit("pick", { x, y }); }

  /** A section of the panel, with a heading; returns what to fill. */
  addSection(title, { open = true } = {}) {
    const body = element("div", { class: "body" });
    this.panel.append(element("details", { class: "section", open },
      element("summary", {}, title), body));
    return body;
  }

  setModel(model) {
    this.model = model;
    this.state.set({ model });
    this.emit("model", { model });
  }

  emit(name, detail = {}) { this.dispatchEvent(new CustomEvent(name, { detail })); }

  /** Say why a part of the slide, or all of it, cannot be read. */
  #problem({ error, damaged }) {
    if (!damaged) this.broken = true;
    else if (this.broken) return;
    this.alert.textContent = damaged
      ? `A part of this slide cannot be read, and is hatched: ${error}.`
      : `This slide cannot be read: ${error}`;
  }

  #addSquares() {
    const squares = new Squares(this, {
      bounds: this.bounds, onproblem: (answer) => this.#problem(answer),
    });
    squares.on("loading", () => this.canvas.setAttribute("aria-busy", "true"));
    squares.on("load", () => this.canvas.removeAttribute("aria-busy"));
    squares.addTo(this.map);
  }

  /** Write what is seen into the address; nothing for the whole slide. */
  keepPlace() {
    const { x, y } = this.centre;
    const z = this.map.getZoom();
    this.state.set(this.fitted ? { x: null, y: null, z: null }
      : { x: x.toFixed(1), y: y.toFixed(1), z: z.toFixed(3) });
  }

  /** The same place in the middle, without the rounding of Leaflet's own way. */
  #resize() {
    const centre = this.centre, { fitted } = this;
    this.map.invalidateSize({ pan: false });
    if (fitted) this.fit();
    else this.show(centre);
  }

  #restore() {
    const [x, y, z] = ["x", "y", "z"].map((name) => parseFloat(this.state.get(name, "")));
    if ([x, y, z].every(Number.isFinite)) this.show({ x, y }, Math.min(z, MOST));
    else this.fit();
  }
}
