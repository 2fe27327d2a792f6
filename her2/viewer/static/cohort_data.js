// The slides of all cohorts as columns: which of them a view has, in which order, and how many each
// filter would give. Nothing here knows of the page.

const RESULTS = ["correct", "wrong", "no truth", "no prediction"];
const [CORRECT, WRONG, NO_TRUTH, NO_PREDICTION] = RESULTS.keys();
/** What no value of a facet is called. */
export const NO_VALUE = { predicted: "no prediction", mark: "nothing found", otherwise: "not known" };
export const BINS = 10; // of confidence, for its counts

/** A filter by values: what it is called here and in the address, and for people. */
export const FACETS = [
  ["cohort", "Cohort"], ["result", "Correct or wrong"], ["truth", "Truth"],
  ["predicted", "Predicted"], ["site", "Site"], ["scanner", "Scanner"],
  ["status", "Usable, or why not"], ["mark", "Quality"],
];

export class Slides {
  constructor(table) {
    Object.assign(this, { table, rows: table.rows, classes: table.classes, causes: table.causes });
    const columns = table.columns;
    this.ids = columns.slide_id;
    this.tiles = floats(columns.tiles);
    this.mpp = floats(columns.mpp);
    this.probabilities = this.classes.map((name) => floats(columns.probabilities[name]));
    this.rejected = this.causes.map((name) => floats(columns.rejected[name]));
    this.lost = sum(this.rejected, this.rows);
    this.confidence = new Float64Array(this.rows).fill(NaN);
    const result = new Int32Array(this.rows);
    const truth = columns.truth.codes, predicted = columns.predicted.codes;
    for (let row = 0; row < this.rows; row += 1) {
      if (predicted[row] < 0) result[row] = NO_PREDICTION;
      else {
        this.confidence[row] = this.probabilities[predicted[row]][row];
        result[row] = truth[row] < 0 ? NO_TRUTH : truth[row] === predicted[row] ? CORRECT : WRONG;
      }
    }
    this.facets = FACETS.map(([key, title]) => this.#facet(key, title, result));
    this.words = this.ids.map((id, row) => `${id}\n${this.text("patient_id", row) ?? ""}`.toLowerCase());
    this.cautions = columns.cautions;
    this.orders = new Map();
  }

  #facet(key, title, result) {
    if (key === "result") return { key, title, names: RESULTS, codes: result };
    if (key === "mark") return { key, title, names: this.table.marks, bits: this.table.columns.marks };
    const { names, codes } = this.table.columns[key === "status" ? "standing" : key];
    return { key, title, names, codes };
  }

  /** The text of a coded column, or null. */
  text(column, row) {
    const { names, codes } = this.table.columns[column];
    return codes[row] < 0 ? null : names[codes[row]];
  }

  cohort(row) { return this.text("cohort", row); }

  result(row) {
    return RESULTS[this.facets.find((one) => one.key === "result").codes[row]];
  }

  marks(row) { return this.table.marks.filter((_, bit) => (this.table.columns.marks[row] >> bit) & 1); }

  /** The row of a slide, or -1. */
  find(cohort, id) {
    let row = this.ids.indexOf(id);
    while (row >= 0 && this.cohort(row) !== cohort) row = this.ids.indexOf(id, row + 1);
    return row;
  }

  /** What can be sorted by: [key, words, values]; values are null for the order of the rows. */
  get sorts() {
    return [
      ["id", "id", null], ["confidence", "confidence", this.confidence],
      ...this.classes.map((name, index) => [`p:${name}`, `P(${name})`, this.probabilities[index]]),
      ["truth", "truth", this.table.columns.truth.codes],
      ["tiles", "tiles", this.tiles], ["rejected", "share of tiles rejected", this.lost],
      ["site", "site", this.table.columns.site.codes],
    ];
  }

  /** All rows in an order; what is not known comes last in both directions. */
  #ordered(sort, down) {
    const key = `${down ? "-" : ""}${sort}`;
    if (!this.orders.has(key)) {
      const values = (this.sorts.find(([name]) => name === sort) ?? this.sorts[0])[2];
      const order = Uint32Array.from({ length: this.rows }, (_, row) => row);
      const sign = down ? -1 : 1;
      if (values === null) { if (down) order.reverse(); }
      else {
        const coded = !(values instanceof Float64Array);
        const value = Float64Array.from(values, (one) => (coded && one < 0 ? NaN : one));
        order.sort((a, b) => {
          const x = value[a], y = value[b];
          if (x !== x || y !== y) return (x !== x) - (y !== y) || a - b;
          return sign * (x - y) || a - b;
        });
      }
      this.orders.set(key, order);
    }
    return this.orders.get(key);
  }

  /**
   * The rows of a view in its order, and for each facet the number of rows that each of its values
   * would give together with all other filters; the last number is of rows without a value. So has
   * the last of `counts`, of tenths of the confidence.
   * A view has `chosen` (facet -> set of names, "" for no value), `from`, `to` (of the confidence,
   * which is below `to` unless that is 1), `search`, `sort` and `down`.
   */
  select(view) {
    const { rows, facets, confidence, words } = this;
    const wanted = facets.map((facet) => wantedCodes(facet, view.chosen.get(facet.key)));
    const counts = facets.map(({ names }) => new Uint32Array(names.length + 1));
    const search = view.search.trim().toLowerCase();
    const ranged = view.from > 0 || view.to < 1;
    const tenths = new Uint32Array(BINS + 1);
    counts.push(tenths);
    const most = view.to < 1 ? view.to : Infinity;
    const kept = new Uint8Array(rows);
    let number = 0;
    for (let row = 0; row < rows; row += 1) {
      if (search && !words[row].includes(search)) continue;
      const sure = confidence[row];
      let failed = ranged && !(sure >= view.from && sure < most) ? facets.length : -1;
      let fails = failed < 0 ? 0 : 1;
      for (let index = 0; index < facets.length && fails < 2; index += 1) {
        if (wanted[index] && !fits(facets[index], wanted[index], row)) { failed = index; fails += 1; }
      }
      if (fails > 1) continue;
      if (fails === 0) {
        kept[row] = 1;
        number += 1;
        for (let index = 0; index < facets.length; index += 1) count(facets[index], counts[index], row);
      } else if (failed < facets.length) count(facets[failed], counts[failed], row);
      if (fails === 0 || failed === facets.length) tenths[tenth(sure)] += 1;
    }
    const order = new Uint32Array(number);
    let place = 0;
    for (const row of this.#ordered(view.sort, view.down)) if (kept[row]) order[place++] = row;
    return { order, counts };
  }
}

/** The tenth of a confidence, `from <= value < to` as a range has it; the last is of none. */
function tenth(value) {
  if (Number.isNaN(value)) return BINS;
  let bin = Math.min(BINS - 1, Math.floor(value * BINS));
  if (value < bin / BINS) bin -= 1; // 0.3 * 10 may be rounded to more
  else if (bin < BINS - 1 && value >= (bin + 1) / BINS) bin += 1;
  return bin;
}

function floats(values) {
  return Float64Array.from(values, (one) => (one === null ? NaN : one));
}

function sum(columns, rows) {
  const found = new Float64Array(rows);
  for (const column of columns) for (let row = 0; row < rows; row += 1) found[row] += column[row];
  return found;
}

/** A flag for each name, and one more for no value; null where everything is wanted. */
function wantedCodes({ names }, chosen) {
  if (!chosen?.size) return null;
  const flags = new Uint8Array(names.length + 1);
  names.forEach((name, code) => { flags[code] = chosen.has(name); });
  flags[names.length] = chosen.has("");
  return flags;
}

function fits({ names, codes, bits }, wanted, row) {
  if (codes) return wanted[codes[row] < 0 ? names.length : codes[row]];
  if (!bits[row]) return wanted[names.length];
  for (let bit = 0; bit < names.length; bit += 1) if ((bits[row] >> bit) & 1 && wanted[bit]) return 1;
  return 0;
}

function count({ names, codes, bits }, counts, row) {
  if (codes) counts[codes[row] < 0 ? names.length : codes[row]] += 1;
  else if (!bits[row]) counts[names.length] += 1;
  else for (let bit = 0; bit < names.length; bit += 1) counts[bit] += (bits[row] >> bit) & 1;
}

/** The rows as CSV. Text is quoted, and what a spreadsheet would run as a formula is not one. */
export function asCSV(slides, order) {
  const probability = slides.classes.map((name) => `prob_${name}`);
  const rejected = slides.causes.map((name) => `rejected_${name}`);
  const texts = ["patient_id", "label", "truth", "predicted"];
  const lines = [["cohort", "slide_id", ...texts, ...probability, "result", "confidence", "status",
    "reason", "tiles", "rejected", ...rejected, "site", "scanner", "mpp", "quality", "cautions",
    "model"].map(quoted).join(",")];
  for (const row of order) {
    const text = (name) => quoted(slides.text(name, row));
    lines.push([
      quoted(slides.cohort(row)), quoted(slides.ids[row]), ...texts.map(text),
      ...slides.probabilities.map((values) => number(values[row])),
      quoted(slides.result(row)), number(slides.confidence[row]), text("status"), text("reason"),
      number(slides.tiles[row]), number(slides.lost[row]),
      ...slides.rejected.map((values) => number(values[row])),
      text("site"), text("scanner"), number(slides.mpp[row]),
      quoted(slides.marks(row).join("; ")), quoted((slides.cautions[row] ?? []).join(" ")),
      quoted(slides.table.model),
    ].join(","));
  }
  return `${lines.join("\r\n")}\r\n`;
}

function number(value) { return Number.isNaN(value) ? "" : String(value); }

function quoted(text) {
  if (text === null || text === undefined || text === "") return "";
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return `"${safe.replaceAll('"', '""')}"`;
}
