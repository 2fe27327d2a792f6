// The borders of tiles, drawn on a canvas over what is seen, where tiles are large enough.

const L = window.L;
const LEAST_PX = 10;

/** `corners` is x, y, x, y ... of the top left corners in level-0 px, sorted by y. */
export const Borders = L.Layer.extend({
  initialize(pane, corners, tile, options) {
    Object.assign(this, { _of: pane, _corners: corners, _tile: tile });
    L.setOptions(this, options);
  },

  onAdd(map) {
    this._canvas = L.DomUtil.create("canvas", "borders", map.getPane(this.options.pane));
    map.on("move zoom viewreset resize", this._later, this);
    this._draw();
  },

  onRemove(map) {
    map.off("move zoom viewreset resize", this._later, this);
    cancelAnimationFrame(this._frame);
    this._canvas.remove();
  },

  _later() {
    cancelAnimationFrame(this._frame);
    this._frame = requestAnimationFrame(() => this._draw());
  },

  /** Number of the first corner that is below y. */
  _below(y) {
    let low = 0, high = this._corners.length / 2;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this._corners[2 * middle + 1] > y) high = middle;
      else low = middle + 1;
    }
    return low;
  },

  _draw() {
    const map = this._map, canvas = this._canvas, density = window.devicePixelRatio || 1;
    if (!map) return;
    const size = map.getSize(), scale = map.getZoomScale(map.getZoom(), 0);
    canvas.width = Math.round(size.x * density);
    canvas.height = Math.round(size.y * density);
    canvas.style.width = `${size.x}px`;
    canvas.style.height = `${size.y}px`;
    L.DomUtil.setPosition(canvas, map.containerPointToLayerPoint([0, 0]));
    const [width, height] = this._tile.map((side) => side * scale);
    canvas.dataset.drawn = "0";
    if (Math.min(width, height) < LEAST_PX) return;
    const pen = canvas.getContext("2d");
    pen.scale(density, density);
    const from = this._of.toLevel0(map.containerPointToLatLng([0, 0]));
    const bottom = from.y + size.y / scale;
    const path = new Path2D();
    let drawn = 0;
    for (let i = this._below(from.y - this._tile[1]); 2 * i < this._corners.length; i += 1) {
      const y = this._corners[2 * i + 1];
      if (y > bottom) break;
      const left = (this._corners[2 * i] - from.x) * scale;
      if (left + width < 0 || left > size.x) continue;
      path.rect(left, (y - from.y) * scale, width, height);
      drawn += 1;
    }
    canvas.dataset.drawn = String(drawn);
    for (const [colour, line] of [["rgba(255, 255, 255, .6)", 2.5], ["#3a3a3a", 1]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = line;
      pen.stroke(path);
    }
  },
});
