// The whole slide in a corner, with a frame around what is seen; a click moves there.
import { element, slideURL } from "./common.js";

const SIDE_PX = 160;
/** Of a screen's px, less than which a frame is not seen. */
const LEAST_PX = 6;

export class Overview {
  constructor(pane) {
    this.pane = pane;
    const [width, height] = pane.facts.size_px;
    this.scale = SIDE_PX / Math.max(width, height);
    this.frame = element("div", { class: "overview-frame" });
    const address = slideURL("", pane.cohort, pane.slideId, "thumbnail.jpg");
    const image = element("img", { src: `${address}?size=${2 * SIDE_PX}`, alt: "",
      draggable: "false", onerror: () => this.root.remove() });
    // For a mouse only: keys and buttons do the same, and the place is said in numbers.
    this.root = element("div", { class: "overview", "aria-hidden": "true" }, image, this.frame);
    this.root.style.width = `${width * this.scale}px`;
    this.root.style.height = `${height * this.scale}px`;
    this.root.addEventListener("pointerdown", (event) => this.#go(event));
    this.root.addEventListener("pointermove", (event) => { if (event.buttons) this.#go(event); });
    for (const name of ["click", "dblclick", "pointerdown", "mousedown", "touchstart", "wheel"]) {
      this.root.addEventListener(name, (event) => event.stopPropagation(), { passive: true });
    }
    pane.canvas.append(this.root);
    pane.map.on("move zoom", () => this.update());
    this.update();
  }

  update() {
    const { pane, scale, frame } = this;
    const seen = pane.map.getBounds();
    const a = pane.toLevel0(seen.getNorthWest()), b = pane.toLevel0(seen.getSouthEast());
    const [width, height] = pane.facts.size_px;
    this.root.hidden = a.x <= 0 && a.y <= 0 && b.x >= width && b.y >= height;
    const along = (from, to, whole) => {
      const begin = Math.min(Math.max(from, 0), whole), end = Math.min(Math.max(to, 0), whole);
      return [begin * scale, Math.max(LEAST_PX, (end - begin) * scale)];
    };
    const [left, wide] = along(a.x, b.x, width), [top, high] = along(a.y, b.y, height);
    Object.assign(frame.style, { left: `${left}px`, top: `${top}px`, width: `${wide}px`,
      height: `${high}px` });
  }

  #go(event) {
    const box = this.root.getBoundingClientRect();
    this.pane.show({ x: (event.clientX - box.left) / this.scale,
      y: (event.clientY - box.top) / this.scale });
    event.preventDefault();
  }
}
