// Two panes that move together: the second keeps its place beside the first as it was when linked.

/** um per level-0 px of both panes; px of both, where one of them does not know its um. */
function units(one, other) {
  const known = one.facts.mpp && other.facts.mpp;
  return [one, other].map((pane) => (known ? pane.facts.mpp : [1, 1]));
}

/** A pane's centre and how much a px of the screen is, both in these units. */
function seen(pane, unit) {
  const { x, y } = pane.centre;
  return { x: x * unit[0], y: y * unit[1], px: unit[0] / 2 ** pane.map.getZoom() };
}

export class Together {
  /** `linked` begins with the panes as they are now. */
  constructor(one, other) {
    this.panes = [one, other];
    this.units = units(one, other);
    this.linked = false;
    this.following = false;
    this.panes.forEach((pane, index) => pane.map.on("move zoom", () => this.#follow(index)));
  }

  link() {
    const [a, b] = this.panes.map((pane, index) => seen(pane, this.units[index]));
    Object.assign(this, { linked: true, offset: { x: b.x - a.x, y: b.y - a.y }, ratio: b.px / a.px });
  }

  unlink() { this.linked = false; }

  /** Move the pane that somebody did not move; `index` is the other one. */
  #follow(index) {
    if (!this.linked || this.following) return;
    this.following = true;
    try {
      const sign = index === 0 ? 1 : -1;
      const at = seen(this.panes[index], this.units[index]);
      const follower = this.panes[1 - index], unit = this.units[1 - index];
      const px = at.px * this.ratio ** sign;
      follower.show({ x: (at.x + sign * this.offset.x) / unit[0],
        y: (at.y + sign * this.offset.y) / unit[1] }, Math.log2(unit[0] / px));
    } finally {
      this.following = false;
    }
  }

  /**
   * Put the second pane where it belongs when it is new: the same slide at the same place, another
   * one with its middle as far off as that of the first, both at the same um per px of the screen.
   */
  align() {
    const [one, other] = this.panes, [unit, otherUnit] = this.units;
    const at = seen(one, unit);
    const same = one.cohort === other.cohort && one.slideId === other.slideId;
    const middle = (pane, scale) => pane.facts.extent_px.map((side, axis) => (side / 2) * scale[axis]);
    const from = middle(one, unit), to = middle(other, otherUnit);
    const shift = same ? [0, 0] : [to[0] - from[0], to[1] - from[1]];
    other.show({ x: (at.x + shift[0]) / otherUnit[0], y: (at.y + shift[1]) / otherUnit[1] },
      Math.log2(otherUnit[0] / at.px));
  }
}
