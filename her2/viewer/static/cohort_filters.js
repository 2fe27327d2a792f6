// The filters beside the list: the values of each, with how many slides each of them would give.
import { BINS, NO_VALUE } from "./cohort_data.js";
import { element } from "./common.js";

const SHOWN = 8; // values of a filter at first, the most frequent
const MOST = 200;

export class Filters {
  #facets = new Map(); // key -> {counts: Map(name -> element), lines: Map(name -> element), box}

  /** `changed()` is called when somebody has set a filter of `view`, an object that is kept. */
  constructor(root, changed) {
    Object.assign(this, { root, changed });
  }

  /** Make the filters anew for a table of slides. */
  build(slides, view) {
    Object.assign(this, { slides, view });
    this.#facets.clear();
    const parts = slides.facets.map((facet) => this.#facet(facet));
    parts.splice(4, 0, this.#confidence());
    this.root.replaceChildren(...parts.filter(Boolean));
  }

  /** Say the numbers of a selection, see `Slides.select`. */
  count(counts) {
    this.slides.facets.forEach((facet, index) => {
      const shown = this.#facets.get(facet.key);
      if (!shown) return;
      for (const [name, { number, line, input }] of shown.lines) {
        const code = name === "" ? facet.names.length : facet.names.indexOf(name);
        const found = code < 0 ? 0 : counts[index][code];
        number.textContent = found.toLocaleString("en");
        line.classList.toggle("none", found === 0);
        input.checked = this.view.chosen.get(facet.key)?.has(name) ?? false;
      }
    });
    this.from.value = this.view.from;
    this.to.value = this.view.to;
    const tenths = counts.at(-1);
    const most = Math.max(1, ...tenths.subarray(0, BINS));
    this.bins.forEach((bin, index) => {
      const found = tenths[index].toLocaleString("en");
      bin.firstChild.style.height = `${(100 * tenths[index]) / most}%`;
      const words = `${index / BINS} to ${(index + 1) / BINS}: ${found}`;
      bin.title = words;
      bin.setAttribute("aria-label", `Confidence ${words} slides`);
      bin.setAttribute("aria-pressed", this.view.from <= index / BINS && this.view.to >= (index + 1) / BINS
        && (this.view.from > 0 || this.view.to < 1));
    });
  }

  #facet(facet) {
    const chosen = this.view.chosen.get(facet.key) ?? new Set();
    const total = totals(facet);
    const names = [...facet.names.filter((_, code) => total[code]),
      ...(total[facet.names.length] ? [""] : [])];
    for (const name of chosen) if (!names.includes(name)) names.push(name); // of another run
    if (names.length < 2 && !chosen.size && facet.key !== "mark") return null;
    if (facet.key === "mark" && names.length === 1 && names[0] === "" && !chosen.size) return null;
    const lines = new Map();
    const box = element("fieldset", { class: "facet", "data-facet": facet.key });
    const list = element("div", { class: "values" });
    box.append(element("legend", {}, facet.title), list);
    this.#facets.set(facet.key, { lines, box });
    const often = (name) => total[name === "" ? facet.names.length : facet.names.indexOf(name)] ?? 0;
    const frequent = [...names].sort((a, b) => often(b) - often(a));
    const first = new Set([...frequent.slice(0, SHOWN), ...chosen]);
    const add = (shown) => {
      for (const name of names) { // in their order, also those that were there before
        if (lines.has(name)) list.append(lines.get(name).line);
        else if (shown(name)) list.append(this.#value(facet, name, lines));
      }
    };
    if (names.length <= SHOWN + 2) add(() => true);
    else {
      add((name) => first.has(name));
      const rest = new Set(frequent.slice(0, MOST));
      box.append(element("button", { type: "button", class: "more",
        onclick: (event) => {
          event.target.remove();
          add((name) => rest.has(name));
          this.changed();
          list.querySelectorAll("input")[first.size]?.focus();
        } }, `${names.length > MOST ? `the ${MOST} most frequent of` : "all"} ${names.length.toLocaleString("en")}`));
    }
    return box;
  }

  #value(facet, name, lines) {
    const number = element("span", { class: "number" });
    const input = element("input", { type: "checkbox", value: name,
      onchange: () => this.#set(facet.key, name, input.checked) });
    const words = name === "" ? NO_VALUE[facet.key] ?? NO_VALUE.otherwise : name;
    const line = element("label", { class: `value ${name === "" ? "unknown" : ""}` }, input,
      element("span", { class: "name", title: words }, words), number);
    lines.set(name, { number, line, input });
    return line;
  }

  #set(key, name, wanted) {
    const chosen = this.view.chosen.get(key) ?? new Set();
    if (wanted) chosen.add(name);
    else chosen.delete(name);
    if (chosen.size) this.view.chosen.set(key, chosen);
    else this.view.chosen.delete(key);
    this.changed();
  }

  #confidence() {
    const limit = (name, words) => element("input", {
      type: "number", min: "0", max: "1", step: "0.05", "aria-label": `Confidence ${words}`,
      onchange: (event) => {
        const value = Number.parseFloat(event.target.value);
        const least = name === "from" ? 0 : 1;
        this.view[name] = Number.isFinite(value) ? Math.min(1, Math.max(0, value)) : least;
        this.changed();
      },
    });
    this.from = limit("from", "at least");
    this.to = limit("to", "at most");
    this.bins = Array.from({ length: BINS }, (_, index) => element("button", { type: "button",
      onclick: () => {
        const own = [index / BINS, (index + 1) / BINS];
        const again = this.view.from === own[0] && this.view.to === own[1];
        [this.view.from, this.view.to] = again ? [0, 1] : own;
        this.changed();
      } }, element("span", {})));
    return element("fieldset", { class: "facet range" }, element("legend", {}, "Confidence"),
      element("div", { class: "tenths" }, ...this.bins),
      this.from, element("span", { "aria-hidden": "true" }, "to"), this.to);
  }
}

function totals({ names, codes, bits }) {
  const found = new Uint32Array(names.length + 1);
  if (codes) for (const code of codes) found[code < 0 ? names.length : code] += 1;
  else for (const own of bits) {
    if (!own) found[names.length] += 1;
    for (let bit = 0; bit < names.length; bit += 1) found[bit] += (own >> bit) & 1;
  }
  return found;
}
