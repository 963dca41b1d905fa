// The stack on the residual stream. Every block is a button; up and down move between them.
const element = (tag, className, parent, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  if (parent) parent.appendChild(made);
  return made;
};

export default function ({ data, parentElement, setTriggerValue }) {
  let root = parentElement.querySelector(".stack");
  if (!root) root = element("div", "stack", parentElement);
  const focused = parentElement.activeElement?.dataset?.path ?? root.getRootNode().activeElement?.dataset?.path;
  const fresh = document.createDocumentFragment();
  element("div", "line", fresh);

  const draw = (row, parent) => {
    const line = element("div", `row ${row.caption ? "caption" : ""}`, parent);
    element("i", "knot", line);
    const block = element("button", "block", line);
    block.type = "button";
    block.dataset.path = row.path;
    block.style.setProperty("--kind", `var(--${row.token})`);
    block.classList.toggle("thin", Boolean(row.thin));
    block.classList.toggle("folded", Boolean(row.folded));
    block.classList.toggle("selected", Boolean(row.selected));
    block.setAttribute("aria-pressed", String(Boolean(row.selected)));
    const name = element("span", "name", block, row.title);
    if (row.times) element("b", "times", name, ` ${row.times}`);
    element("span", "note", block, row.note);
    block.title = row.note ? `${row.title}: ${row.note}` : row.title;
    block.onclick = () => setTriggerValue("select", row.target);
    const share = element("span", "share", line);
    if (row.value) {
      share.title = row.hover;
      const bar = element("i", "bar", share);
      bar.style.background = `var(--${row.token})`;
      bar.style.width = `calc((100% - 62px) * ${row.length / 100})`;
      element("span", "", share, row.value);
    }
    return line;
  };

  data.rows.forEach((row) => {
    if (!row.rows) {
      draw(row, fresh);
      return;
    }
    const frame = element("div", "frame", fresh);
    const head = element("button", "head", frame);
    head.type = "button";
    head.dataset.path = row.path;
    head.classList.toggle("selected", Boolean(row.selected));
    const name = element("span", "name", head, row.title);
    if (row.times) element("b", "times", name, ` ${row.times}`);
    element("span", "note", head, `${row.note} · open`);
    head.onclick = () => setTriggerValue("select", row.selected ? { part: "model" } : row.target);
    head.title = row.selected ? "Fold" : "Select the whole group; once more folds it";
    row.rows.forEach((inner) => draw(inner, frame));
  });
  root.replaceChildren(fresh);

  root.onkeydown = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const blocks = [...root.querySelectorAll("button")];
    const now = blocks.indexOf(root.getRootNode().activeElement);
    const next = blocks[now + step];
    if (next) {
      next.focus();
      event.preventDefault();
    }
  };
  if (focused) [...root.querySelectorAll("button")].find((each) => each.dataset.path === focused)?.focus({ preventScroll: true });
}
