// Buttons and keys of a pane: zoom, and moving without a mouse.
import { element, state } from "./common.js";

const POWERS = [5, 10, 20, 40];
/** Share of the view that an arrow key moves by. */
const STEP = 0.2;

/** Leaflet's zoom at which a px of the screen is 10 um / power, as an objective of that power is. */
function zoomOf(power, mpp) { return Math.log2((mpp[0] * power) / 10); }

/** The next zoom that halves or doubles full resolution some times. */
function stepped(zoom, by) {
  return by > 0 ? Math.floor(zoom + 1e-6) + 1 : Math.ceil(zoom - 1e-6) - 1;
}

function zoomBy(pane, by) {
  const { map } = pane;
  const next = Math.min(map.getMaxZoom(), Math.max(map.getMinZoom(), stepped(map.getZoom(), by)));
  map.setZoom(next);
}

function full(pane) { pane.map.setZoom(0); }

/** Hide all that lies on the slide, or show it again. */
function toggleLayers(pane) {
  const bare = pane.canvas.classList.toggle("bare");
  pane.stage.querySelector(".layers-toggle").setAttribute("aria-pressed", String(!bare));
}

/** The row of buttons above the slide. */
export function tools(pane) {
  const { mpp, objective } = pane.facts;
  const button = (words, label, act, more = {}) => element("button",
    { type: "button", title: label, "aria-label": label, onclick: act, ...more }, words);
  const unknown = "\u00b5m/px of this slide are not known";
  const row = element("div", { class: "tools", role: "toolbar", "aria-label": "Zoom" },
    element("b", { class: "of" }, pane.slideId),
    button("\u2212", "Zoom out (-)", () => zoomBy(pane, -1)),
    button("+", "Zoom in (+)", () => zoomBy(pane, 1)),
    button("Fit", "The whole slide (0)", () => pane.fit()),
    button("1:1", "Full resolution (1)", () => full(pane)),
    ...POWERS.map((power) => button(`${power}x`,
      mpp ? `${10 / power} \u00b5m/px, as ${power}x` : `${power}x: ${unknown}`,
      () => pane.map.setZoom(Math.min(pane.map.getMaxZoom(), zoomOf(power, mpp))),
      { disabled: !mpp })),
    objective ? element("span", { class: "muted", title: "As the file says; \u00b5m/px count, not this" },
      `scanned with ${objective}x`) : null);
  const layers = button("Layers", "What lies on the slide, or the slide alone (L)",
    () => toggleLayers(pane), { class: "layers-toggle", "aria-pressed": "true" });
  const toggle = button("Panel", "Show or hide the panel", () => {
    const shown = pane.panel.hidden;
    pane.panel.hidden = !shown;
    toggle.setAttribute("aria-expanded", String(shown));
    pane.state.set({ panel: shown ? "1" : "0" });
  }, { "aria-controls": pane.panel.id });
  // Two slides on a telephone leave no room for it.
  const crowded = state.get("with") && window.innerWidth < 600 ? "0" : "1";
  pane.panel.hidden = pane.state.get("panel", crowded) === "0";
  toggle.setAttribute("aria-expanded", String(!pane.panel.hidden));
  row.append(element("span", { class: "at-end" }, layers, toggle));
  return row;
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** What keys do while the slide itself has the focus; returns whether this one did anything. */
export function onSlide(pane, key) {
  if (key in MOVES) {
    const size = pane.map.getSize();
    pane.map.panBy([MOVES[key][0] * size.x * STEP, MOVES[key][1] * size.y * STEP],
      { animate: false });
  } else if (key === "Enter") pane.pick(pane.centre);
  else return false;
  return true;
}

/** What keys do anywhere on the page but in fields. */
export function anywhere(pane, key) {
  if (key === "+" || key === "=") zoomBy(pane, 1);
  else if (key === "-" || key === "_") zoomBy(pane, -1);
  else if (key === "0") pane.fit();
  else if (key === "1") full(pane);
  else if (key === "l" || key === "L") toggleLayers(pane);
  else if (key === "Escape") pane.emit("escape");
  else return false;
  return true;
}
