// Draws the figures: their traces and layouts come as JSON, in which a colour is the name of one in page.css.
(() => {
  "use strict";
  const SMOOTHED_OVER = Number(document.documentElement.dataset.smoothedOver);
  const drawings = JSON.parse(document.getElementById("drawings").textContent);
  const train = document.getElementById("train");
  const buttons = [...document.querySelectorAll(".legend button")];
  const style = getComputedStyle(document.documentElement);
  const isTouched = matchMedia("(pointer: coarse)").matches; // a finger that scrolls the page does not zoom

  const isShown = (run) => run === undefined || buttons[run].getAttribute("aria-pressed") === "true";

  // The arrays of points stay the same objects: Plotly then sees that they did not change.
  function coloured(value, key = "") {
    if (/color$/.test(key)) return style.getPropertyValue(`--${value}`).trim();
    if (Array.isArray(value)) return value[0]?.constructor === Object ? value.map((item) => coloured(item)) : value;
    if (value?.constructor !== Object) return value;
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, coloured(item, name)]));
  }

  function smoothed(values) {
    const reach = (SMOOTHED_OVER - 1) / 2;
    return values.map((_, i) => {
      const near = values.slice(Math.max(0, i - reach), i + reach + 1);
      return near.reduce((sum, value) => sum + value) / near.length;
    });
  }

  function shown(trace) {
    const { run, kind } = trace.meta ?? {};
    const drawn = { ...coloured(trace), visible: isShown(run) && !(kind === "train" && train.value === "hidden") };
    if (kind === "train" && train.value === "mean") {
      drawn.y = smoothed(trace.y);
      drawn.opacity = 0.8;
      drawn.hovertemplate = trace.hovertemplate.replace("train NLL", `train NLL, mean of ${SMOOTHED_OVER} points,`);
    }
    return drawn;
  }

  function draw() {
    for (const { key, traces, layout } of drawings) {
      const themed = { ...coloured(layout), dragmode: isTouched ? false : "zoom" };
      Plotly.react(key, traces.map(shown), themed, {
        responsive: true,
        displaylogo: false,
        displayModeBar: isTouched || "hover",
        modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
        plotlyServerURL: "", // nor does anything else send the points to somebody's server
      });
    }
  }

  function press(pressed, isOn) {
    for (const button of pressed) button.setAttribute("aria-pressed", isOn(button));
    draw();
  }

  for (const button of buttons) {
    button.addEventListener("click", () => press([button], () => button.getAttribute("aria-pressed") === "false"));
  }
  document.getElementById("all")?.addEventListener("click", () => press(buttons, () => true));
  document.getElementById("none")?.addEventListener("click", () => press(buttons, () => false));
  train?.addEventListener("change", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
