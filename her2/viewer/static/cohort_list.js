// A grid of very many items of which only the visible ones are elements, with one of them in the
// order of Tab, which arrow keys move.
import { element } from "./common.js";

const BEYOND = 2; // rows above and below the visible ones

/**
 * `make(item)` gives the cells of an item, as elements: one for a card, several for a line of a
 * table; `drop(element)` is told when a row leaves the page. Events with detail {place} in the list:
 * "active", "open" by the keys, and "leave" when a link is about to be followed.
 */
export class List extends EventTarget {
  #rows = new Map(); // number of a row -> its element
  #columns = 1;
  #row_px = 0;
  #top_px = 0; // height of the header of a table

  constructor(root, { label, least_px, make, drop, header = null }) {
    super();
    Object.assign(this, { root, make, drop, least_px, header, items: [], active: 0, focused: false });
    this.space = element("div", { class: "space", role: "presentation" });
    this.grid = element("div", { class: header ? "grid lines" : "grid cards", role: "grid", "aria-label": label,
      "aria-readonly": "true" });
    if (header) this.grid.append(header);
    this.grid.append(this.space);
    root.replaceChildren(this.grid);
    this.stop = new AbortController();
    const { signal } = this.stop;
    root.addEventListener("scroll", () => this.#later(), { signal, passive: true });
    this.grid.addEventListener("keydown", (event) => this.#key(event), { signal });
    this.grid.addEventListener("focusin", (event) => this.#focusOn(event), { signal });
    this.grid.addEventListener("focusout", () => { this.focused = false; }, { signal });
    this.observer = new ResizeObserver(() => this.#measure());
    this.observer.observe(root);
  }

  close() {
    this.stop.abort();
    this.observer.disconnect();
    this.#clear();
    this.root.replaceChildren();
  }

  /** Show items, with the one at `place` in sight. */
  show(items, place) {
    this.items = items;
    this.active = Math.max(0, Math.min(place, items.length - 1));
    this.#clear();
    this.#measure();
  }

  /** Make an item the one in the order of Tab, bring it into sight, and give it the focus. */
  go(place, { focus = true } = {}) {
    if (!this.items.length) return;
    this.active = Math.max(0, Math.min(place, this.items.length - 1));
    this.#intoSight();
    this.#draw();
    if (focus) this.#cell(this.active)?.focus({ preventScroll: true });
    this.dispatchEvent(new CustomEvent("active", { detail: { place: this.active } }));
  }

  #measure() {
    if (!this.root.clientWidth) return;
    const columns = this.header ? 1 : Math.max(1, Math.floor(this.root.clientWidth / this.least_px));
    const height_px = this.#probe();
    if (columns !== this.#columns || height_px !== this.#row_px || !this.#rows.size) {
      const focused = this.space.contains(document.activeElement);
      this.#clear();
      this.#columns = columns;
      this.#row_px = height_px;
      this.#top_px = this.header ? this.header.offsetHeight : 0;
      const rows = Math.ceil(this.items.length / columns);
      this.grid.setAttribute("aria-rowcount", rows + (this.header ? 1 : 0));
      if (!this.header) this.grid.setAttribute("aria-colcount", columns);
      this.space.style.height = `${rows * height_px}px`;
      this.#intoSight();
      this.#draw();
      if (focused) this.#cell(this.active)?.focus({ preventScroll: true });
    } else this.#draw();
  }

  /** The height of a row, all of which are as high as its style says. */
  #probe() {
    const probe = element("div", { class: "row probe", "aria-hidden": "true" });
    this.space.append(probe);
    const height_px = probe.offsetHeight;
    probe.remove();
    return height_px;
  }

  #intoSight() {
    const row = Math.floor(this.active / this.#columns), { root } = this;
    const top_px = row * this.#row_px, bottom_px = top_px + this.#row_px + this.#top_px;
    if (top_px < root.scrollTop) root.scrollTop = top_px;
    else if (bottom_px > root.scrollTop + root.clientHeight) root.scrollTop = bottom_px - root.clientHeight;
  }

  #visible() {
    const last = Math.ceil(this.items.length / this.#columns) - 1;
    const first = Math.floor(this.root.scrollTop / this.#row_px);
    const end = Math.floor((this.root.scrollTop + this.root.clientHeight) / this.#row_px);
    return [Math.min(first, last), Math.min(end, last)];
  }

  #later() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.#follow();
      this.#draw();
    });
  }

  /** Where nobody is at the keys, the place is what the eye is on. */
  #follow() {
    if (this.focused || !this.items.length) return;
    const [first, end] = this.#visible();
    const row = Math.floor(this.active / this.#columns);
    if (row >= first && row <= end) return;
    this.active = Math.min(this.items.length - 1, (row < first ? first : end) * this.#columns);
    this.dispatchEvent(new CustomEvent("active", { detail: { place: this.active } }));
  }

  /** Have the rows in sight as elements, some beyond, and that of the focus wherever it is. */
  #draw() {
    if (!this.#row_px) return;
    const wanted = new Set();
    if (this.items.length) {
      const [first, end] = this.#visible();
      const last = Math.ceil(this.items.length / this.#columns) - 1;
      for (let row = Math.max(0, first - BEYOND); row <= Math.min(last, end + BEYOND); row += 1) wanted.add(row);
      wanted.add(Math.floor(this.active / this.#columns));
    }
    for (const [row, made] of this.#rows) {
      if (!wanted.has(row)) {
        this.drop(made);
        made.remove();
        this.#rows.delete(row);
      }
    }
    for (const row of [...wanted].sort((a, b) => a - b)) {
      if (!this.#rows.has(row)) {
        const made = this.#row(row);
        this.#rows.set(row, made);
        const after = [...this.space.children].find((other) => Number(other.dataset.row) > row);
        this.space.insertBefore(made, after ?? null); // in the order in which it is read
      }
    }
    for (const row of this.#rows.values()) {
      for (const cell of row.children) {
        if (cell.dataset.place) cell.tabIndex = Number(cell.dataset.place) === this.active ? 0 : -1;
      }
      if (row.dataset.place) row.tabIndex = Number(row.dataset.place) === this.active ? 0 : -1;
    }
  }

  #row(row) {
    const made = element("div", { class: "row", role: "row", "aria-rowindex": row + 1 + (this.header ? 1 : 0), "data-row": row });
    made.style.top = `${row * this.#row_px}px`;
    if (!this.header) made.style.gridTemplateColumns = `repeat(${this.#columns}, minmax(0, 1fr))`;
    const begin = row * this.#columns;
    for (let place = begin; place < Math.min(begin + this.#columns, this.items.length); place += 1) {
      const cells = this.make(this.items[place]);
      const one = this.header ? made : cells[0];
      one.dataset.place = place;
      if (!this.header) one.setAttribute("aria-colindex", place - begin + 1);
      for (const cell of cells) cell.setAttribute("role", "gridcell");
      made.append(...cells);
    }
    made.addEventListener("click", (event) => this.#click(event));
    return made;
  }

  #cell(place) {
    const row = this.#rows.get(Math.floor(place / this.#columns));
    if (!row || row.dataset.place) return row;
    return [...row.children].find((cell) => Number(cell.dataset.place) === place);
  }

  /** A link is followed as links are, also into another tab; a click beside it chooses the item. */
  #click(event) {
    const at = event.target.closest("[data-place]");
    if (!at) return;
    if (event.target.closest("a")) {
      this.active = Number(at.dataset.place);
      this.dispatchEvent(new CustomEvent("leave", { detail: { place: this.active } }));
    } else if (getSelection().isCollapsed) this.go(Number(at.dataset.place));
  }

  #open() {
    this.dispatchEvent(new CustomEvent("open", { detail: { place: this.active } }));
  }

  #focusOn(event) {
    this.focused = true;
    const at = event.target.closest("[data-place]");
    if (!at || Number(at.dataset.place) === this.active) return;
    this.active = Number(at.dataset.place);
    this.#draw();
    this.dispatchEvent(new CustomEvent("active", { detail: { place: this.active } }));
  }

  #key(event) {
    if (event.altKey || event.metaKey || !event.target.closest("[data-place]")) return;
    const screen = Math.max(1, Math.floor((this.root.clientHeight - this.#top_px) / this.#row_px)) * this.#columns;
    const last = this.items.length - 1;
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.#columns, ArrowDown: this.#columns,
      PageUp: -screen, PageDown: screen, Home: -this.active, End: last - this.active,
    };
    if (event.key === "Enter") {
      event.preventDefault();
      this.#open();
    } else if (event.key in steps) {
      event.preventDefault();
      const wanted = this.active + steps[event.key];
      const single = event.key === "ArrowUp" || event.key === "ArrowLeft" || event.key === "ArrowRight";
      if (!(single && (wanted < 0 || wanted > last))) this.go(wanted);
    }
  }

  #clear() {
    for (const made of this.#rows.values()) {
      this.drop(made);
      made.remove();
    }
    this.#rows.clear();
  }
}
