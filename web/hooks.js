/** Let `then(...arguments)` run after a callback of a node or canvas, whatever had it before. */
export function after(object, name, then) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    then(...given);
    return result;
  };
}
