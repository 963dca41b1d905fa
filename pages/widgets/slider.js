// A slider over a list of values. It reports when it is let go, or shortly after the last key press.
export default function ({ data, parentElement, setTriggerValue }) {
  let input = parentElement.querySelector("input");
  if (!input) {
    const track = document.createElement("div");
    track.className = "track";
    input = document.createElement("input");
    input.type = "range";
    input.min = 0;
    const ticks = document.createElement("div");
    ticks.className = "ticks";
    track.append(ticks, input);
    parentElement.appendChild(track);
  }
  const ticks = parentElement.querySelector(".ticks");
  const last = data.texts.length - 1;
  input.max = last;
  input.setAttribute("aria-label", data.label);
  const say = () => {
    const text = data.texts[input.value];
    input.setAttribute("aria-valuetext", text);
    input.title = text;
  };
  input.value = data.index;
  say();
  ticks.replaceChildren();
  if (data.ticks) {
    data.texts.forEach((_, index) => {
      const tick = document.createElement("u");
      tick.style.left = `calc(7px + (100% - 14px) * ${last ? index / last : 0})`;
      ticks.appendChild(tick);
    });
  }
  let timer;
  const report = () => {
    clearTimeout(timer);
    if (Number(input.value) !== data.index) setTriggerValue("pick", Number(input.value));
  };
  input.oninput = () => {
    say();
    clearTimeout(timer);
    timer = setTimeout(report, 250);
  };
  input.onchange = report;
  return () => clearTimeout(timer);
}
