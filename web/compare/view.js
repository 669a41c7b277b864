// Zoom and pan: where a picture lies in a pane. Lengths of the pane are device pixels, so zoom 1 is one to one.

export const MAX_ZOOM = 64;

const between = (value, low, high) => Math.min(Math.max(value, low), high);

export class View {
  constructor() {
    this.pane = { width: 1, height: 1 };
    this.picture = { width: 1, height: 1 };
    this.zoom = 1;
    this.centre = { x: 0.5, y: 0.5 }; // in pixels of the picture
    this.fitted = true;
  }

  get fitZoom() {
    return Math.min(this.pane.width / this.picture.width, this.pane.height / this.picture.height);
  }

  get limits() {
    const fit = this.fitZoom;
    return [Math.min(1, fit) / 2, Math.max(MAX_ZOOM, 4 * fit)];
  }

  /** Where the picture's left top corner lies in the pane; whole pixels keep enlarged pixels square. */
  get origin() {
    return {
      x: Math.round(this.pane.width / 2 - this.centre.x * this.zoom),
      y: Math.round(this.pane.height / 2 - this.centre.y * this.zoom),
    };
  }

  /** The part of the picture that the pane shows, in pixels of the picture. */
  get seen() {
    const { width, height } = this.picture;
    const start = this.toPicture({ x: 0, y: 0 });
    const end = this.toPicture({ x: this.pane.width, y: this.pane.height });
    return {
      left: between(start.x, 0, width),
      top: between(start.y, 0, height),
      right: between(end.x, 0, width),
      bottom: between(end.y, 0, height),
    };
  }

  toPicture({ x, y }) {
    const { origin, zoom } = this;
    return { x: (x - origin.x) / zoom, y: (y - origin.y) / zoom };
  }

  toPane({ x, y }) {
    const { origin, zoom } = this;
    return { x: origin.x + x * zoom, y: origin.y + y * zoom };
  }

  /** Whether a point of the pane lies on the picture. */
  holds(point) {
    const { x, y } = this.toPicture(point);
    return x >= 0 && y >= 0 && x < this.picture.width && y < this.picture.height;
  }

  setPicture(width, height) {
    if (width === this.picture.width && height === this.picture.height) return;
    this.picture = { width, height };
    this.fit();
  }

  /** Take a new size of the pane. `magnified`: by how much everything on the screen grew with it. */
  setPane(width, height, magnified = 1) {
    this.pane = { width: Math.max(1, width), height: Math.max(1, height) };
    if (this.fitted) this.fit();
    else this.zoomTo(this.zoom * magnified);
  }

  fit() {
    this.fitted = true;
    this.zoom = this.fitZoom;
    this.settle();
  }

  /** Zoom; what lies at `at` (a point of the pane, else its middle) stays there. */
  zoomTo(zoom, at = { x: this.pane.width / 2, y: this.pane.height / 2 }) {
    if (!Number.isFinite(zoom)) return;
    const held = this.toPicture(at);
    this.zoom = between(zoom, ...this.limits);
    this.fitted = false;
    this.centre = {
      x: held.x - (at.x - this.pane.width / 2) / this.zoom,
      y: held.y - (at.y - this.pane.height / 2) / this.zoom,
    };
    this.settle();
  }

  panBy(dx, dy) {
    this.centre = { x: this.centre.x - dx / this.zoom, y: this.centre.y - dy / this.zoom };
    this.settle();
  }

  /** Keep a picture larger than the pane over all of it, and a smaller one in its middle. */
  settle() {
    const along = (centre, length, room) => {
      const half = room / this.zoom / 2;
      return 2 * half >= length ? length / 2 : between(centre, half, length - half);
    };
    this.centre = {
      x: along(this.centre.x, this.picture.width, this.pane.width),
      y: along(this.centre.y, this.picture.height, this.pane.height),
    };
  }
}
