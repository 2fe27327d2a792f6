// Asking for a second pane: the same slide with another model, or another slide.
import { element, state } from "./common.js";

/** The second slide that the address names, [cohort, id], or null. */
export function asked() {
  const text = state.get("with", ""), cut = text.indexOf("/");
  return cut > 0 ? [text.slice(0, cut), text.slice(cut + 1)] : null;
}

/** What the address says of a second pane, see `Pane.state`. */
function ofSecond() {
  const names = [...new URLSearchParams(location.search).keys()];
  return [...names.filter((name) => name.endsWith("2")), "link"];
}

/** Open a second pane, or close it with null; what was of an earlier one goes. */
export function open(slide, more = {}) {
  state.set({ ...Object.fromEntries(ofSecond().map((name) => [name, null])),
    with: slide && slide.join("/"), ...more });
  location.reload();
}

/** The dialog; `slides` are those of the list, [cohort, id]. */
export function dialog(pane, slides) {
  const { cohort, slideId, facts } = pane;
  const others = facts.models.filter((model) => model !== pane.model);
  const models = element("select", { id: "compare-model" },
    ...others.map((model) => element("option", { value: model }, model)));
  const ids = element("datalist", { id: "compare-ids" },
    ...slides.map(([c, id]) => element("option", { value: c === cohort ? id : `${c}/${id}` })));
  const typed = element("input", { id: "compare-id", list: "compare-ids", autocomplete: "off" });
  const problem = element("p", { class: "alert", role: "alert", hidden: true });
  const known = new Map(slides.map(([c, id]) => [`${c}/${id}`, [c, id]]));
  const other = () => {
    const text = typed.value.trim(), cut = text.indexOf("/");
    const found = known.get(`${cohort}/${text}`) ?? known.get(text)
      ?? (cut > 0 ? [text.slice(0, cut), text.slice(cut + 1)] : text ? [cohort, text] : null);
    if (found) open(found);
    else {
      problem.hidden = false;
      problem.textContent = "Type the id of a slide; of another cohort as COHORT/ID.";
    }
  };
  const made = element("dialog", { class: "compare", "aria-labelledby": "compare-title" },
    element("h2", { id: "compare-title" }, "Side by side"),
    element("form", { method: "dialog", onsubmit: (event) => { event.preventDefault(); other(); } },
      element("label", { for: "compare-id" }, "Another slide"), typed, ids,
      element("button", { type: "submit" }, "Open")),
    others.length ? element("form", { method: "dialog", onsubmit: (event) => {
      event.preventDefault();
      open([cohort, slideId], { model2: models.value });
    } },
      element("label", { for: "compare-model" }, "This slide, with the model"), models,
      element("button", { type: "submit" }, "Open")) : null,
    problem,
    element("button", { type: "button", onclick: () => made.close() }, "Cancel"));
  return made;
}
