// A slide on the page: a Leaflet map in level-0 px, and the panel of sections beside it.
import { element, getJSON, slideURL } from "./common.js";

const L = window.L;

/** Squares of the Deep Zoom levels; Leaflet's zoom 0 is full resolution, -1 is half of it. */
const Squares = L.GridLayer.extend({
  initialize(pane, options) {
    this._pane = pane;
    L.GridLayer.prototype.initialize.call(this, options);
  },
  createTile(at, done) {
    const { cohort, slideId, facts } = this._pane;
    const image = element("img", { alt: "" });
    const square = element("div", {}, image);
    image.onload = () => {
      // Squares at the right and lower border are smaller than the others.
      image.style.width = `${(100 * image.naturalWidth) / facts.zoom.tile_px}%`;
      done(null, square);
    };
    image.onerror = () => done(new Error("a square of the slide cannot be read"), square);
    const level = facts.zoom.levels - 1 + at.z;
    image.src = slideURL("", cohort, slideId, "zoom", level, `${at.x}_${at.y}.jpg`);
    return square;
  },
});

/**
 * Events: "pick" with detail {x, y} in level-0 px, when somebody clicks on the slide;
 * "model" with detail {model}, the key of the model whose layers are shown, or null.
 */
export class Pane extends EventTarget {
  constructor(cohort, slideId, facts) {
    super();
    Object.assign(this, { cohort, slideId, facts, model: null });
    this.canvas = element("div", { class: "map", tabindex: "0", role: "application",
      "aria-label": `Slide ${slideId}: arrow keys move, plus and minus zoom` });
    this.panel = element("aside", { class: "panel", "aria-label": `About ${slideId}` });
    this.root = element("section", { class: "pane" }, this.canvas, this.panel);
  }

  static async open(cohort, slideId, into) {
    const pane = new Pane(cohort, slideId, await getJSON(slideURL("/api", cohort, slideId)));
    into.append(pane.root);
    pane.start();
    return pane;
  }

  start() {
    const [width, height] = this.facts.size_px;
    const lowest = -(this.facts.zoom.levels - 1);
    this.map = L.map(this.canvas, {
      crs: L.CRS.Simple, minZoom: lowest, maxZoom: 3, zoomSnap: 1, attributionControl: false,
    });
    this.bounds = L.latLngBounds(this.toLatLng(0, height), this.toLatLng(width, 0));
    new Squares(this, {
      tileSize: this.facts.zoom.tile_px, minNativeZoom: lowest, maxNativeZoom: 0,
      minZoom: lowest, maxZoom: 3, bounds: this.bounds, noWrap: true,
    }).addTo(this.map);
    this.map.fitBounds(this.bounds);
    this.map.on("click", (event) => this.#emit("pick", this.toLevel0(event.latlng)));
  }

  /** Level-0 px to Leaflet: y goes down on a slide and up on a map. */
  toLatLng(x, y) { return L.latLng(-y, x); }

  toLevel0(latlng) { return { x: latlng.lng, y: -latlng.lat }; }

  /** Bounds [left, top, right, bottom] in level-0 px to Leaflet. */
  toBounds([left, top, right, bottom]) {
    return L.latLngBounds(this.toLatLng(left, bottom), this.toLatLng(right, top));
  }

  /** A section of the panel, with a heading; returns what to fill. */
  addSection(title, { open = true } = {}) {
    const body = element("div", { class: "body" });
    this.panel.append(element("details", { class: "section", open },
      element("summary", {}, title), body));
    return body;
  }

  setModel(model) {
    this.model = model;
    this.#emit("model", { model });
  }

  #emit(name, detail) { this.dispatchEvent(new CustomEvent(name, { detail })); }
}
