// The strip of layers as an editor: drag or arrow keys select, a chip paints what is selected.
const element = (tag, className, parent) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (parent) parent.appendChild(made);
  return made;
};

// A page that is drawn anew may put a new strip in the place of one that has the focus: the new one takes it over.
let focused = false;

export default function ({ data, parentElement, setTriggerValue }) {
  let root = parentElement.querySelector(".strip");
  if (!root) {
    root = element("div", "strip", parentElement);
    const bar = element("div", "bar", root);
    element("span", "title", bar).textContent = "Layers";
    element("span", "hint", bar);
    element("span", "paints", bar);
    const lanes = element("div", "lanes", root);
    lanes.tabIndex = 0;
    lanes.setAttribute("role", "listbox");
    lanes.setAttribute("aria-multiselectable", "true");
    lanes.setAttribute("aria-label", "Layers: arrow keys move, shift extends, control A selects all");
    element("div", "scale", root);
    root.takesFocus = focused;
  }
  const lanes = root.querySelector(".lanes");
  const scale = root.querySelector(".scale");
  const hint = root.querySelector(".hint");
  const paints = root.querySelector(".paints");
  const count = data.cells.length;
  const state = (root.state ??= { first: null, last: null, dragging: false, chosen: [], painted: [] });

  // Layers
  while (lanes.children.length > count) lanes.lastChild.remove();
  while (lanes.children.length < count) {
    const cell = element("div", "cell", lanes);
    cell.setAttribute("role", "option");
    element("i", "upper", cell);
    element("i", "lower", cell);
  }
  lanes.style.gap = count > 96 ? "1px" : "2px";
  const background = (token) => (token ? `var(--${token})` : "transparent");
  data.cells.forEach((cell, index) => {
    const box = lanes.children[index];
    box.title = `Layer ${index}: ${cell.words}`;
    box.children[0].style.background = background(cell.upper);
    box.children[0].classList.toggle("absent", !cell.upper);
    box.children[1].style.background = background(cell.lower);
    box.children[1].classList.toggle("absent", !cell.lower);
  });

  // The scale under them
  const step = [1, 2, 4, 8, 16, 32, 64, 128].find((each) => count / each <= 12) ?? 256;
  scale.replaceChildren();
  for (let index = 0; index < count; index += step) {
    const mark = element("span", "", scale);
    mark.textContent = index;
    mark.style.left = `${((index + 0.5) / count) * 100}%`;
  }

  // Paints. A click may come before the server has seen the last one, and only the newest report arrives then: each
  // report carries all clicks that the server has not answered, with the layers that each was meant for.
  state.painted = state.painted.filter((click) => click.number > data.painted);
  const names = data.paints.map((paint) => paint.name).join();
  if (paints.dataset.names !== names) {
    paints.dataset.names = names;
    paints.replaceChildren();
    data.paints.forEach((paint) => {
      const chip = element("button", "chip", paints);
      chip.type = "button";
      chip.dataset.paint = paint.name;
      element("i", "dot", chip).style.background = `var(--${paint.token})`;
      element("span", "", chip).textContent = paint.label;
    });
  }
  [...paints.children].forEach((chip) => {
    chip.onclick = () => {
      const number = Math.max(Date.now(), (state.painted.at(-1)?.number ?? 0) + 1);
      state.painted.push({ number, name: chip.dataset.paint, layers: state.chosen });
      setTriggerValue("paint", [...state.painted]);
    };
  });

  // What is selected: contiguous runs are framed
  const frame = (chosen) => {
    const set = new Set(chosen);
    state.chosen = chosen;
    for (const chip of paints.children) chip.disabled = !chosen.length;
    [...lanes.children].forEach((box, index) => {
      const on = set.has(index);
      box.setAttribute("aria-selected", String(on));
      box.classList.toggle("on", on);
      box.classList.toggle("from", on && !set.has(index - 1));
      box.classList.toggle("to", on && !set.has(index + 1));
    });
    if (!chosen.length) hint.textContent = "drag to select, then paint";
    else {
      const first = Math.min(...chosen), last = Math.max(...chosen);
      const whole = last - first + 1 === chosen.length;
      const which = first === last ? `layer ${first}` : `layers ${first}–${last}`;
      hint.textContent = `${which}${whole ? "" : `, ${chosen.length} of them`} selected · paint with`;
    }
  };
  const span = () => {
    const low = Math.min(state.first, state.last), high = Math.max(state.first, state.last);
    return Array.from({ length: high - low + 1 }, (_, index) => low + index);
  };
  const report = () => {
    clearTimeout(state.timer);
    state.timer = null;
    const chosen = span();
    setTriggerValue("select", [chosen[0], chosen[chosen.length - 1]]);
  };
  // Keys that are not reported yet outlast a page that is drawn anew.
  if (state.timer) frame(span());
  else {
    frame(data.selected);
    if (!state.dragging && data.selected.length) {
      state.first = data.selected[0];
      state.last = data.selected[data.selected.length - 1];
    }
  }
  const at = (event) => {
    const box = lanes.getBoundingClientRect();
    return Math.max(0, Math.min(count - 1, Math.floor(((event.clientX - box.left) / box.width) * count)));
  };
  lanes.onpointerdown = (event) => {
    if (event.button !== 0) return;
    lanes.setPointerCapture(event.pointerId);
    state.dragging = true;
    state.last = at(event);
    if (!event.shiftKey || state.first === null) state.first = state.last;
    frame(span());
    lanes.focus({ preventScroll: true });
    event.preventDefault();
  };
  lanes.onpointermove = (event) => {
    if (!state.dragging) return;
    const now = at(event);
    if (now !== state.last) {
      state.last = now;
      frame(span());
    }
  };
  lanes.onpointerup = () => {
    if (!state.dragging) return;
    state.dragging = false;
    report();
  };
  lanes.onpointercancel = () => {
    state.dragging = false;
    frame(data.selected);
  };
  lanes.onkeydown = (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -count, End: count };
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "a") {
      state.first = 0;
      state.last = count - 1;
    } else if (event.key in moves) {
      const from = state.last ?? -1;
      state.last = Math.max(0, Math.min(count - 1, from + moves[event.key]));
      if (!event.shiftKey || state.first === null) state.first = state.last;
    } else return;
    event.preventDefault();
    frame(span());
    clearTimeout(state.timer);
    state.timer = setTimeout(report, 180); // several key presses are one selection
  };

  lanes.onfocus = () => (focused = true);
  lanes.onblur = (event) => {
    if (event.relatedTarget || lanes.isConnected) focused = false;
  };
  if (root.takesFocus) {
    root.takesFocus = false;
    lanes.focus({ preventScroll: true });
  }

  return () => {
    if (state.timer) report();
  };
}
