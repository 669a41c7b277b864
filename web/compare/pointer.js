// Mouse, wheel and fingers on the picture: hover or one finger wipes, dragging pans, wheel or two fingers zoom.

const WHEEL = 0.0015; // logarithm of the zoom for one unit of the wheel
const LINES = 33; // units for a wheel that counts lines
const TAP = 6; // screen pixels a click may move

/**
 * `stage`: the element with the picture. `host` answers and acts in device pixels of the canvas:
 * paneAt(point), view, ready, mode, hover(point), wipeTo(point), changed(), flip(), toggleFit(point).
 * `outer`: what the page does with events that are not for the picture: leaves(event), wheel(event).
 * Returns a function that ends a drag, for when the stage moves to another place.
 */
export function listen(stage, canvas, host, outer) {
  const fingers = new Map();
  let drag = null;

  const pointOf = (event) => {
    const box = canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * canvas.width) / (box.width || 1),
      y: ((event.clientY - box.top) * canvas.height) / (box.height || 1),
    };
  };
  const inPane = (point) => {
    const { area } = host.paneAt(point);
    return { x: point.x - area.left, y: point.y - area.top };
  };
  const middle = () => {
    const [one, other] = [...fingers.values()];
    return {
      at: { x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 },
      apart: Math.max(1, Math.hypot(one.x - other.x, one.y - other.y)),
    };
  };

  const stop = () => {
    fingers.clear();
    drag = null;
  };

  const isButton = (event) => event.target.closest("button, dl");
  const own = (event) => host.ready && !outer.leaves(event) && !isButton(event);

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !own(event)) return;
    event.stopPropagation();
    stage.setPointerCapture(event.pointerId);
    const point = pointOf(event);
    if (event.pointerType === "touch") fingers.set(event.pointerId, point);
    drag = { point, start: [event.clientX, event.clientY], moved: fingers.size > 1, pinch: null };
    if (fingers.size === 2) drag.pinch = middle();
    else if (event.pointerType === "touch" && host.mode === "wipe") host.wipeTo(point);
  });

  const pinch = () => {
    const now = middle();
    const was = drag.pinch;
    host.view.panBy(now.at.x - was.at.x, now.at.y - was.at.y);
    host.view.zoomTo((host.view.zoom * now.apart) / was.apart, inPane(now.at));
    drag.pinch = now;
    host.changed();
  };

  const pan = (point) => {
    host.view.panBy(point.x - drag.point.x, point.y - drag.point.y);
    drag.point = point;
    host.changed();
  };

  // Nodes 2.0 takes every wheel above a node for the graph, but from elements that claim it.
  const claimWheel = (event, point) => {
    const claimed = point !== null && own(event) && host.view.holds(inPane(point));
    stage.dataset.captureWheel = String(claimed);
  };

  stage.addEventListener("pointermove", (event) => {
    const point = pointOf(event);
    claimWheel(event, point);
    if (!own(event)) return;
    const touch = event.pointerType === "touch";
    if (drag && !touch && !event.buttons) stop(); // released where nobody saw it
    if (!touch) host.hover(point);
    if (!drag) return;
    event.stopPropagation();
    const [x, y] = drag.start;
    if (Math.hypot(event.clientX - x, event.clientY - y) > TAP) drag.moved = true;
    if (touch && fingers.has(event.pointerId)) fingers.set(event.pointerId, point);
    if (fingers.size > 1 && drag.pinch) pinch();
    else if (touch && host.mode === "wipe") host.wipeTo(point);
    else if (drag.moved) pan(point);
  });

  const end = (event) => {
    if (!drag) return;
    event.stopPropagation();
    fingers.delete(event.pointerId);
    const tapped = event.type === "pointerup" && !drag.moved;
    const [last] = fingers.values();
    // A finger that stays after a pinch goes on from where it is.
    drag = last ? { point: last, start: drag.start, moved: true, pinch: null } : null;
    if (tapped && host.mode === "flicker") host.flip();
  };
  stage.addEventListener("pointerup", end);
  stage.addEventListener("pointercancel", end);
  stage.addEventListener("lostpointercapture", end);
  stage.addEventListener("pointerleave", (event) => {
    claimWheel(event, null);
    host.hover(null);
  });
  stage.addEventListener("dblclick", (event) => {
    if (!own(event) || host.mode === "flicker") return;
    event.stopPropagation();
    host.toggleFit(inPane(pointOf(event)));
  });

  stage.addEventListener("wheel", (event) => {
    const point = pointOf(event);
    const onPicture = own(event) && host.view.holds(inPane(point));
    if (!onPicture) return;
    event.preventDefault();
    event.stopPropagation();
    const units = event.deltaMode === 1 ? event.deltaY * LINES : event.deltaY;
    const speed = event.ctrlKey ? 6 * WHEEL : WHEEL; // a pinch on a trackpad comes as small steps with ctrl
    host.view.zoomTo(host.view.zoom * Math.exp(-Math.max(-400, Math.min(400, units)) * speed), inPane(point));
    host.changed();
  }, { passive: false });
  return stop;
}

/** Keep ComfyUI's own two-finger zoom of the graph, which listens above all nodes, away from the picture. */
export function guardTouches(selector) {
  const guard = (event) => {
    if (event.target instanceof Element && event.target.closest(selector)) event.stopPropagation();
  };
  for (const name of ["touchstart", "touchmove", "touchend", "touchcancel"]) {
    window.addEventListener(name, guard, { capture: true, passive: true });
  }
}
