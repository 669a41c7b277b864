// Pictures of a run: where they lie on the server, whether they are still there, and their decoded pixels.

const SMALLEST_COPY = 1024; // pixels of the long edge below which no reduced copy is worth its memory

export class Gone extends Error {}

/** Decoded pixels with copies of half, quarter, ... size, so that drawing a large picture small stays quick. */
class Picture {
  constructor(address, bitmap) {
    this.address = address;
    this.levels = [bitmap];
    this.width = bitmap.width;
    this.height = bitmap.height;
  }

  async addCopies() {
    let last = this.levels[0];
    while (Math.max(last.width, last.height) > 2 * SMALLEST_COPY) {
      const size = { resizeWidth: Math.ceil(last.width / 2), resizeHeight: Math.ceil(last.height / 2) };
      last = await createImageBitmap(last, { ...size, resizeQuality: "medium" });
      this.levels.push(last);
    }
  }

  /** The smallest copy that still has a pixel for each one drawn. `scale`: drawn pixels for one of the picture's. */
  at(scale) {
    const wanted = Math.floor(Math.log2(1 / Math.max(scale, 1e-9)) + 1e-6);
    return this.levels[Math.min(Math.max(wanted, 0), this.levels.length - 1)];
  }

  close() {
    for (const level of this.levels) level.close();
  }
}

/** Loads pictures through ComfyUI's `api` and keeps those of the pair on show. */
export class Gallery {
  constructor(api) {
    this.api = api;
    this.held = new Map();
  }

  /**
   * Load pictures by their references; then call `keep` or `drop`. Throws Gone if the server no longer has one.
   * `signal`: of an AbortController, for pictures that are no longer wanted.
   */
  async load(references, signal) {
    await this.checkKept(references, signal);
    const addresses = references.map((reference) => this.addressOf(reference));
    const wanted = addresses.map((address) => this.held.get(address) ?? this.fetch(address, signal));
    const ends = await Promise.allSettled(wanted);
    const pictures = ends.map(({ value }) => value).filter(Boolean);
    const drop = () => {
      const held = [...this.held.values()];
      for (const picture of pictures) if (!held.includes(picture)) picture.close();
    };
    const failed = ends.find(({ status }) => status === "rejected");
    if (failed) {
      drop();
      throw failed.reason;
    }
    return { pictures, keep: () => this.keep(pictures), drop };
  }

  keep(pictures) {
    for (const old of this.held.values()) if (!pictures.includes(old)) old.close();
    this.held = new Map(pictures.map((picture) => [picture.address, picture]));
  }

  addressOf(reference) {
    return this.api.apiURL(`/view?${new URLSearchParams(reference)}`);
  }

  /** Ask first: the browser would write an error to its console for every missing picture. */
  async checkKept(references, signal) {
    const names = references.filter(({ type, subfolder }) => type === "temp" && !subfolder).map((one) => one.filename);
    if (!names.length) return;
    const body = JSON.stringify({ names });
    const answer = await this.api.fetchApi("/eam/kept_pictures", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body,
      signal,
    });
    if (answer.ok && (await answer.json()).kept.includes(false)) throw new Gone();
  }

  async fetch(address, signal) {
    const answer = await fetch(address, { signal });
    if (answer.status === 404) throw new Gone();
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const blob = await answer.blob();
    const picture = new Picture(address, await createImageBitmap(blob));
    try {
      signal?.throwIfAborted();
      await picture.addCopies();
    } catch (error) {
      picture.close();
      throw error;
    }
    return picture;
  }
}
