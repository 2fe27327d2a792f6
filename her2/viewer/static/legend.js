// Legends of layers: colours with their numbers, or categories with their counts.
import { element } from "./common.js";

function bar({ colours, ticks, words }) {
  const scale = element("div", { class: "legend-bar", "aria-hidden": "true" });
  scale.style.background = `linear-gradient(to top, ${colours.join(", ")})`;
  const numbers = element("ol", { class: "legend-ticks" }, ...ticks.map(({ at, label }) => {
    const tick = element("li", {}, label);
    tick.style.bottom = `${100 * at}%`;
    return tick;
  }));
  return [element("div", { class: "legend-scale" }, scale, numbers),
    words ? element("p", { class: "muted" }, words) : null];
}

function categories({ rows, words }) {
  const items = rows.map(({ colour, label, count, dashed }) => {
    const sample = element("span", { class: dashed ? "sample dashed" : "sample", "aria-hidden": "true" });
    sample.style.borderColor = colour;
    if (!dashed) sample.style.background = colour;
    const number = count === null ? "" : ` ${count.toLocaleString("en")}`;
    return element("li", {}, sample, element("span", {}, label, element("b", {}, number)));
  });
  return [element("ul", { class: "legend-rows" }, ...items),
    words ? element("p", { class: "muted" }, words) : null];
}

/** The legend of a layer as an element; its title where that is not the layer's own. */
export function legend(facts, layer) {
  const parts = facts.ticks ? bar(facts) : categories(facts);
  const title = facts.title === layer ? null : element("strong", {}, facts.title);
  return element("div", { class: "legend" }, title, ...parts);
}
