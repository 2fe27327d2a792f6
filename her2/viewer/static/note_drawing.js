// Draw an outline on a slide: by pointer, or by keys with a crosshair in the middle of the view.

const L = window.L;
const STILL_PX = 4; // less movement than this is no drag
const LAST_CLICK_MS = 50;
const CLOSE_PX = 10; // this near the first corner closes a polygon
const LOOKS = [{ color: "#ffffff", weight: 5, opacity: 0.9 }, { color: "#000000", weight: 2, dashArray: "6 5" }];

export const HELP = {
  rectangle: "Drag over the slide, or click two opposite corners. By keys: the arrows move the slide "
    + "under the crosshair, Space puts a corner there, Backspace removes it, Escape stops.",
  polygon: "Click the corners; Enter, a double click or a click on the first corner closes it. By keys: "
    + "the arrows move the slide under the crosshair, Space puts a corner there, Backspace removes the "
    + "last one, Enter closes it, Escape stops.",
};

/** An outline that is shown while it is drawn and described; corners are {x, y} in level-0 px. */
export class Outline {
  constructor(pane) {
    this.layer = L.layerGroup().addTo(pane.map);
    this.pane = pane;
  }

  show(corners, closed) {
    const points = corners.map(({ x, y }) => this.pane.toLatLng(x, y));
    const kind = closed ? L.polygon : L.polyline;
    this.layer.clearLayers();
    for (const look of LOOKS) kind(points, { ...look, fill: false, interactive: false }).addTo(this.layer);
    if (closed) return;
    for (const point of points) {
      L.circleMarker(point, { radius: 4, color: "#000", weight: 1, fillColor: "#fff", fillOpacity: 1,
        interactive: false }).addTo(this.layer);
    }
  }

  clear() { this.layer.clearLayers(); }
}

/** The corners of a box [left, top, right, bottom]. */
export function cornersOf([left, top, right, bottom]) {
  return [{ x: left, y: top }, { x: right, y: top }, { x: right, y: bottom }, { x: left, y: bottom }];
}

/**
 * Draws one outline and is then over. `done` gets its corners, or null where it was given up;
 * `say` tells those who listen.
 */
export class Drawing {
  constructor(pane, kind, outline, { done, say }) {
    Object.assign(this, { pane, kind, outline, done, say, corners: [], from: null });
    this.ended = new AbortController();
    const { canvas } = pane;
    const hear = (name, act, target = canvas) =>
      target.addEventListener(name, act, { capture: true, signal: this.ended.signal });
    hear("keydown", (event) => this.#key(event));
    hear("pointerdown", (event) => this.#down(event));
    hear("pointermove", (event) => this.#move(event));
    hear("pointerup", (event) => this.#up(event));
    hear("pointercancel", () => { this.from = null; });
    // Neither picks a tile nor zooms; a rectangle does not move the map either.
    for (const name of ["click", ...(kind === "rectangle" ? ["mousedown", "touchstart"] : [])]) {
      hear(name, (event) => event.stopImmediatePropagation());
    }
    hear("dblclick", (event) => {
      event.stopImmediatePropagation(); // here: what is heard ends with the drawing
      if (kind === "polygon") this.finish();
    });
    this.touchAction = canvas.style.touchAction;
    if (kind === "rectangle") {
      pane.map.dragging.disable();
      canvas.style.touchAction = "none";
    }
    canvas.classList.add("marking");
    canvas.focus();
    this.say(HELP[kind]);
  }

  /** Put a corner in the middle of the view, or where the pointer is. */
  add(corner = this.pane.toLevel0(this.pane.map.getCenter())) {
    const last = this.corners.at(-1);
    if (last && this.#apart(last, corner) < 2) return;
    if (this.kind === "polygon" && this.corners.length > 2
      && this.#apart(this.corners[0], corner) < CLOSE_PX) {
      this.finish();
      return;
    }
    this.corners.push(corner);
    this.#draw();
    this.say(`Corner ${this.corners.length} at x ${Math.round(corner.x)}, y ${Math.round(corner.y)}.`);
    if (this.kind === "rectangle" && this.corners.length === 2) this.finish();
  }

  back() {
    this.corners.pop();
    this.#draw();
    this.say(`${this.corners.length} corners.`);
  }

  finish() {
    const found = this.kind === "polygon" ? this.corners : this.#box(...this.corners);
    if (found.length < 3) {
      this.say("There are too few corners to close it.");
      return;
    }
    this.#end(found);
  }

  cancel() {
    this.outline.clear();
    this.#end(null);
  }

  #end(corners) {
    if (this.ended.signal.aborted) return;
    this.ended.abort();
    const { canvas, map } = this.pane;
    // The click of the pointer that ended it is still to come, and picks no tile either.
    const last = new AbortController();
    canvas.addEventListener("click", (event) => event.stopImmediatePropagation(),
      { capture: true, signal: last.signal });
    setTimeout(() => last.abort(), LAST_CLICK_MS);
    canvas.classList.remove("marking");
    canvas.style.touchAction = this.touchAction;
    map.dragging.enable();
    if (corners) this.outline.show(corners, true);
    this.done(corners);
  }

  #box(a, b) {
    if (!a || !b) return [];
    return cornersOf([Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)]);
  }

  #draw(hovered = null) {
    const corners = hovered ? [...this.corners, hovered] : this.corners;
    const box = this.kind === "rectangle" && corners.length === 2;
    this.outline.show(box ? this.#box(...corners) : corners, box);
  }

  #apart(a, b) {
    const [first, second] = [a, b].map(({ x, y }) =>
      this.pane.map.latLngToContainerPoint(this.pane.toLatLng(x, y)));
    return first.distanceTo(second);
  }

  #at(event) {
    return this.pane.toLevel0(this.pane.map.mouseEventToLatLng(event));
  }

  #down(event) {
    if (event.button !== 0 || !event.isPrimary) return;
    this.from = { x: event.clientX, y: event.clientY, at: this.#at(event) };
    if (this.kind === "rectangle") {
      event.stopImmediatePropagation();
      this.pane.canvas.setPointerCapture(event.pointerId);
    }
  }

  #moved(event) {
    return Math.hypot(event.clientX - this.from.x, event.clientY - this.from.y) > STILL_PX;
  }

  #move(event) {
    if (this.kind === "polygon") {
      if (!this.from && this.corners.length && event.pointerType === "mouse") this.#draw(this.#at(event));
    } else if (this.from && this.#moved(event)) {
      this.corners = [this.from.at];
      this.#draw(this.#at(event));
    } else if (!this.from && this.corners.length === 1) {
      this.#draw(this.#at(event));
    }
  }

  #up(event) {
    if (!this.from) return;
    const dragged = this.#moved(event);
    const at = this.#at(event);
    this.from = null;
    if (this.kind === "rectangle" && dragged) {
      this.corners = this.corners.slice(0, 1);
      this.add(at);
    } else if (!dragged) {
      this.add(at);
    }
  }

  #key(event) {
    const acts = { " ": () => this.add(), Backspace: () => this.back(), Escape: () => this.cancel(),
      Enter: () => (this.kind === "polygon" ? this.finish() : this.add()) };
    if (event.ctrlKey || event.metaKey || event.altKey || !acts[event.key]) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    acts[event.key]();
  }
}
