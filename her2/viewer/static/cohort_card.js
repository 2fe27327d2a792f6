// A slide as a card, and as a line of the table. All text is text, whatever the manifest says.
import { element, slideURL } from "./common.js";

const SIGNS = { correct: "\u2713", wrong: "\u2717", "no truth": "", "no prediction": "" };
const PICTURE_PX = 256;

export function percent(share) {
  if (Number.isNaN(share)) return "";
  if (share > 0 && share < 0.005) return "<\u00a01\u00a0%";
  return `${(100 * share).toFixed(0)}\u00a0%`;
}

function figure(value) { return Number.isNaN(value) ? "" : value.toFixed(3); }

export function linkTo(slides, row) {
  const model = slides.table.model;
  const address = slideURL("", slides.cohort(row), slides.ids[row]);
  return model ? `${address}?${new URLSearchParams({ model })}` : address;
}

function verdict(slides, row) {
  const result = slides.result(row);
  return element("span", { class: `verdict ${result.replace(" ", "-")}` },
    SIGNS[result] && element("span", { "aria-hidden": "true" }, `${SIGNS[result]} `), result);
}

/** The class, and the label where it says more: `high (3+)`. */
function truthOf(slides, row) {
  const truth = slides.text("truth", row), label = slides.text("label", row);
  if (truth === null) return label === null ? "not known" : `none (label ${label})`;
  return label === null || label === truth ? truth : `${truth} (${label})`;
}

function bars(slides, row) {
  const truth = slides.text("truth", row), predicted = slides.text("predicted", row);
  const list = element("ul", { class: "bars", "aria-label": "Probabilities" });
  slides.classes.forEach((name, index) => {
    const value = slides.probabilities[index][row];
    if (Number.isNaN(value)) return;
    const bar = element("span", { class: "bar-line", "aria-hidden": "true" }, element("span", { class: "fill" }));
    bar.firstChild.style.width = `${100 * value}%`;
    list.append(element("li", { class: name === predicted ? "predicted" : "" },
      element("span", { class: "name", title: name }, name), bar,
      element("span", { class: "value" }, value.toFixed(3)),
      element("span", { class: "is-truth" }, name === truth ? "truth" : "")));
  });
  return list;
}

/** Why a slide is not used, and what may be wrong with it: [words, more words, kind] of each. */
function remarks(slides, row) {
  const status = slides.text("status", row), found = [];
  if (status !== "ok") found.push([status, slides.text("reason", row) ?? "", "unusable"]);
  for (const words of slides.cautions[row] ?? []) found.push(["caution", words, "marked"]);
  if (slides.lost[row] > 0) {
    const causes = slides.causes.map((name, index) => [name, slides.rejected[index][row]])
      .filter(([, part]) => part > 0).map(([name, part]) => `${name} ${percent(part)}`);
    const many = slides.marks(row).includes(slides.table.marks[0]);
    found.push([`${percent(slides.lost[row])} rejected`, causes.join(", "), many ? "marked" : "plain"]);
  }
  return found;
}

/** A card in one sentence. */
function spoken(slides, row) {
  const predicted = slides.text("predicted", row);
  return [
    slides.ids[row], `patient ${slides.text("patient_id", row) ?? "not known"}`, `truth ${truthOf(slides, row)}`,
    predicted && `predicted ${predicted} with ${figure(slides.confidence[row])}`, slides.result(row),
    ...remarks(slides, row).map(([words, more]) => (more ? `${words}: ${more}` : words)),
  ].filter(Boolean).join(", ");
}

export function card(slides, row, thumbnails) {
  const id = slides.ids[row], status = slides.text("status", row);
  const picture = element("span", { class: "picture" }, element("img", { alt: "" }));
  thumbnails.want(picture, `${slideURL("", slides.cohort(row), id, "thumbnail.jpg")}?size=${PICTURE_PX}`);
  const where = [slides.text("site", row), slides.text("scanner", row)];
  const tiles = slides.tiles[row];
  const about = [slides.cohort(row), Number.isNaN(tiles) ? null : `${tiles.toLocaleString("en")} tiles`, ...where]
    .filter(Boolean).join(" \u00b7 ");
  return element("div", { "aria-label": spoken(slides, row), class: `card ${slides.result(row).replace(" ", "-")} ${status === "ok" ? "" : "unusable"}` },
    element("a", { href: linkTo(slides, row), tabindex: "-1", class: "open" }, picture,
      element("span", { class: "id", title: id }, id)),
    element("div", { class: "line", title: `patient ${slides.text("patient_id", row) ?? ""}` },
      `patient ${slides.text("patient_id", row) ?? "not known"}`),
    element("div", { class: "line quiet", title: about }, about),
    element("div", { class: "line said" }, element("span", { class: "truth" }, `truth ${truthOf(slides, row)}`),
      slides.result(row) === "no truth" ? null : verdict(slides, row)),
    bars(slides, row),
    element("ul", { class: "remarks" }, ...remarks(slides, row).map(([words, more, kind]) =>
      element("li", { class: kind, title: more }, element("strong", {}, words), more && `: ${more}`))));
}

/** Columns of the table: [heading, what it sorts by or null, width, class]. */
export function columnsOf(slides) {
  return [
    ["Slide", "id", "11rem", ""], ["Patient", null, "8rem", ""], ["Truth", "truth", "6rem", ""],
    ["Predicted", null, "6.3rem", ""], ["Result", null, "8rem", ""],
    ...slides.classes.map((name) => [`P(${name})`, `p:${name}`, "5.5rem", "number"]),
    ["Confidence", "confidence", "7.5rem", "number"], ["Tiles", "tiles", "5rem", "number"],
    ["Rejected", "rejected", "6.5rem", "number"], ["Cohort", null, "8rem", ""],
    ["Site", "site", "7rem", ""], ["Scanner", null, "8rem", ""], ["Quality", null, "26rem", ""],
  ];
}

export function line(slides, row) {
  const texts = [
    element("a", { href: linkTo(slides, row), tabindex: "-1" }, slides.ids[row]),
    slides.text("patient_id", row) ?? "", truthOf(slides, row), slides.text("predicted", row) ?? "",
    verdict(slides, row), ...slides.probabilities.map((values) => figure(values[row])),
    figure(slides.confidence[row]),
    Number.isNaN(slides.tiles[row]) ? "" : slides.tiles[row].toLocaleString("en"),
    percent(slides.lost[row]), slides.cohort(row), slides.text("site", row) ?? "",
    slides.text("scanner", row) ?? "",
    remarks(slides, row).map(([words, more]) => (more ? `${words}: ${more}` : words)).join("; "),
  ];
  return columnsOf(slides).map(([, , , kind], index) => element("div", {
    class: `cell ${kind}`, title: typeof texts[index] === "string" ? texts[index] : false,
  }, texts[index]));
}
