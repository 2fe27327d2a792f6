// Panel "Layers": what is laid over the slide, of which model and class, and the legends in numbers.
import { element, getJSON, say, slideURL } from "./common.js";
import { Borders } from "./borders.js";
import { legend } from "./legend.js";

const L = window.L;
/** How often a layer that is being computed is asked for again. */
const AGAIN_MS = [500, 1000, 2000];
const SCALES = { rank: "percentile in the slide", times: "multiple of even attention" };

/** What is asked of the server: the model, its fold's run, the class and the scale. */
export function choices(pane) {
  const query = new URLSearchParams();
  if (pane.model) query.set("model", pane.model);
  for (const name of ["run", "class", "scale"]) {
    if (pane.state.get(name)) query.set(name, pane.state.get(name));
  }
  return query;
}

/** An overlay that is exactly where its bounds are; Leaflet's own is rounded to px of the screen. */
const Exact = L.ImageOverlay.extend({
  _reset() {
    const at = (corner) => this._map.project(corner).subtract(this._map.getPixelOrigin());
    const from = at(this._bounds.getNorthWest()), to = at(this._bounds.getSouthEast());
    L.DomUtil.setPosition(this._image, from);
    this._image.style.width = `${to.x - from.x}px`;
    this._image.style.height = `${to.y - from.y}px`;
  },
});

const MAKERS = {
  image: async (pane, made, options) => new Exact(made.url, pane.toBounds(made.bounds_px),
    { ...options, className: "cells", interactive: false, alt: "" }),
  outline: async (pane, made, options) => L.geoJSON(await getJSON(made.url), {
    interactive: false, coordsToLatLng: ([x, y]) => pane.toLatLng(x, y),
    style: ({ properties }) => ({
      color: properties.colour, weight: 2, fillOpacity: 0.06, interactive: false,
      dashArray: properties.dashed ? "6 5" : null, renderer: options.renderer, pane: options.pane,
    }),
    ...options,
  }),
  grid: async (pane, made, options) => {
    const answer = await fetch(made.url);
    if (!answer.ok) throw new Error("the tiles cannot be read");
    return new Borders(pane, new Int32Array(await answer.arrayBuffer()), made.tile_px, options);
  },
};

/** One layer: its row of the panel, and what is on the slide while it is on. */
class Row {
  constructor(pane, facts, changed) {
    Object.assign(this, { pane, facts, changed, on: false, opacity: facts.opacity, turn: 0 });
    this.place = `layer-${facts.name}`;
    const own = pane.map.createPane(this.place);
    own.style.zIndex = 300 + facts.order;
    own.style.pointerEvents = "none";
    this.own = own;
    const id = `${this.place}-${pane.number ?? 1}`;
    this.box = element("input", { type: "checkbox", id,
      onchange: () => { this.set(this.box.checked); this.changed(); } });
    this.slider = element("input", { type: "range", min: 0, max: 100, step: 5,
      "aria-label": `Opacity of ${facts.title}`, oninput: () => {
        this.fade(Number(this.slider.value) / 100);
        this.changed();
      } });
    this.output = element("output", { class: "muted" });
    this.words = element("div", { class: "layer-words" });
    this.element = element("div", { class: "layer", "data-layer": facts.name },
      element("div", { class: "layer-head" }, this.box, element("label", { for: id }, facts.title),
        this.slider, this.output), this.words);
    this.fade(facts.opacity);
    this.set(false);
  }

  fade(opacity) {
    this.opacity = opacity;
    this.own.style.opacity = opacity;
    this.slider.value = Math.round(100 * opacity);
    this.output.textContent = `${Math.round(100 * opacity)} %`;
  }

  set(on) {
    this.on = on;
    this.box.checked = on;
    this.slider.hidden = this.output.hidden = this.words.hidden = !on;
    if (on) this.load();
    else this.clear();
  }

  clear() {
    this.turn += 1;
    this.shown?.remove();
    this.shown = null;
    this.words.replaceChildren();
    delete this.element.dataset.state;
  }

  /** Ask for it until it is there; a later call, or switching it off, ends this one. */
  async load() {
    const turn = this.turn += 1;
    const { pane, facts } = this;
    const address = `${slideURL("/api", pane.cohort, pane.slideId, "layers", facts.name)}?${choices(pane)}`;
    this.element.dataset.state = "loading";
    try {
      let made;
      for (let tried = 0; ; tried += 1) {
        made = await getJSON(address);
        if (turn !== this.turn) return;
        if (!made.computing) break;
        this.tell(`Computing: ${made.computing} (${Math.round(made.seconds)} s) \u2026`);
        await new Promise((go) => setTimeout(go, AGAIN_MS[Math.min(tried, AGAIN_MS.length - 1)]));
        if (turn !== this.turn) return;
      }
      if (made.absent) throw new Error(made.absent);
      const renderer = facts.kind === "outline" ? L.canvas({ pane: this.place, padding: 0.3 }) : null;
      const layer = await MAKERS[facts.kind](pane, made, { pane: this.place, renderer });
      if (turn !== this.turn) return;
      this.shown?.remove();
      this.shown = layer.addTo(pane.map);
      this.words.replaceChildren(legend(made.legend, facts.title),
        ...(made.note ? [element("p", { class: "alert" }, `${made.note}.`)] : []));
      this.element.dataset.state = "shown";
    } catch (error) {
      if (turn !== this.turn) return;
      this.shown?.remove();
      this.shown = null;
      this.tell(`Not shown: ${error.message}`);
      this.element.dataset.state = "absent";
    }
  }

  tell(words) { this.words.replaceChildren(element("p", { class: "muted" }, words)); }
}

/** `name:opacity,...` of the layers that are on; "none" if all are off. */
function written(rows) {
  const on = rows.filter((row) => row.on);
  return on.map((row) => `${row.facts.name}:${+row.opacity.toFixed(2)}`).join(",") || "none";
}

function restore(rows, text) {
  const asked = text === null ? null : new Map(text.split(",").map((part) => part.split(":")));
  for (const row of rows) {
    const { name, shown } = row.facts;
    const opacity = parseFloat(asked?.get(name));
    if (opacity >= 0 && opacity <= 1) row.fade(opacity);
    row.set(asked ? asked.has(name) : shown);
  }
}

/** Pictures first, which people come for; of a kind, the upper ones first. */
function byUse(one, other) {
  const rank = ({ facts }) => (facts.kind === "image" ? 1000 : 0) + facts.order;
  return rank(other) - rank(one);
}

/** A labelled list of choices, hidden where there is nothing to choose. */
function choice(pane, title, onchange) {
  const id = `choice-${title.toLowerCase().replace(/\W+/g, "-")}-${pane.number ?? 1}`;
  const select = element("select", { id, onchange: () => onchange(select.value) });
  const row = element("div", { class: "choice" }, element("label", { for: id }, title), select);
  const fill = (options, chosen, least = 2) => {
    select.replaceChildren(...options.map(([value, words]) => element("option", { value }, words)));
    select.value = chosen;
    row.hidden = options.length < least;
  };
  return { row, fill };
}

function said({ note, predicted, probabilities, label, by, tiles }) {
  if (note) return `No attention: ${note}`;
  const probability = probabilities[predicted];
  const truth = label ? `truth ${label}` : "truth not known";
  return `Predicted ${predicted} (P = ${probability.toFixed(2)}) ${by}; ${truth}. ` +
    `${tiles.toLocaleString("en")} tiles.`;
}

export async function attach(pane) {
  const address = () => `${slideURL("/api", pane.cohort, pane.slideId, "layers")}?${choices(pane)}`;
  if (!pane.model && pane.facts.models.length) pane.setModel(pane.facts.models[0]);
  let list = await getJSON(address());
  const body = pane.addSection("Layers");
  const rows = list.layers.map((facts) => new Row(pane, facts, () =>
    pane.state.set({ layers: written(rows) })));

  const models = choice(pane, "Model", (value) => pane.setModel(value));
  const renew = (values, follow) => {
    pane.state.set(values);
    for (const row of rows) {
      if (row.on && row.facts.options.some((name) => follow.includes(name))) row.load();
    }
    pane.emit("choice");
  };
  const runs = choice(pane, "Fold", (run) => {
    pane.state.set({ run });
    refresh();
  });
  const classes = choice(pane, "Class", (value) => renew({ class: value }, ["class"]));
  const scales = choice(pane, "Colours", (value) => renew({ scale: value }, ["scale"]));
  const words = element("p", { class: "muted", "aria-live": "polite" });

  function show() {
    models.fill(list.models.map((name) => [name, name]), list.model, 1);
    runs.fill(list.runs.map((name) => [name, name]), list.run);
    classes.fill([["", "predicted"], ...list.classes.map((name) => [name, name])],
      pane.state.get("class", ""), 3);
    scales.fill(Object.entries(SCALES), pane.state.get("scale", "rank"));
    words.textContent = said(list);
  }

  /** The model or the fold is another: what can be chosen, then what is shown. */
  async function refresh() {
    try {
      list = await getJSON(address());
    } catch (error) {
      say(error.message);
      return;
    }
    if (!list.classes.includes(pane.state.get("class"))) pane.state.set({ class: null });
    if (list.run === null || !list.runs.includes(pane.state.get("run"))) pane.state.set({ run: null });
    pane.choice = list;
    show();
    renew({}, ["model", "run"]);
  }

  body.append(models.row, runs.row, classes.row, scales.row, words,
    ...[...rows].sort(byUse).map((row) => row.element));
  pane.choice = list;
  show();
  restore(rows, pane.state.get("layers"));
  pane.addEventListener("model", () => {
    pane.state.set({ run: null });
    refresh();
  });
}
