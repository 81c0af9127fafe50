"""The style and the script of the HTML page."""

STYLE = """
:root {
  --back: #fbfaf8; --card: #ffffff; --ink: #1d1c1a; --quiet: #6a665f; --line: #e2ded7; --hue: 255, 166, 0;
  --accent: #a34700; --minus: #c2185b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14161a; --card: #1c1f25; --ink: #eceae6; --quiet: #a09c94; --line: #333842; --hue: 255, 149, 0;
    --accent: #ffc46b; --minus: #ff7aa8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--back); color: var(--ink);
  font: 1.0625rem/1.75rem system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 46rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { margin: 0; font-size: 1.5rem; font-weight: 500; line-height: 2rem; }
h1 strong { font-variant-numeric: tabular-nums; }
header p { margin: .25rem 0 1.25rem; color: var(--quiet); font-size: .9375rem; line-height: 1.5rem; }
h2 {
  margin: 0 0 .25rem; font-size: .8125rem; font-weight: 600; letter-spacing: .06em;
  text-transform: uppercase; color: var(--quiet);
}
section {
  margin: 0 0 1rem; padding: .875rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .625rem;
}
.query {
  position: sticky; top: .5rem; z-index: 1; max-height: 50vh; overflow: auto;
  box-shadow: 0 2px 12px rgba(0, 0, 0, .08);
}
.query .text { font-size: 1.25rem; line-height: 2rem; }
.text { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.added { margin: .375rem 0 0; color: var(--quiet); font-size: .875rem; line-height: 1.5rem; overflow-wrap: anywhere; }
.added span {
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .8125rem;
  color: var(--ink); unicode-bidi: isolate;
}
.cut { color: var(--quiet); font-style: italic; }
[data-to] {
  cursor: pointer; border-radius: .2em; padding: .08em 0; background: rgba(var(--hue), var(--share, 0));
  -webkit-tap-highlight-color: transparent;
}
.s0 { --share: .04; } .s1 { --share: .09; } .s2 { --share: .15; } .s3 { --share: .22; } .s4 { --share: .29; }
.s5 { --share: .36; } .s6 { --share: .43; } .s7 { --share: .5; } .s8 { --share: .57; } .s9 { --share: .64; }
.minus { text-decoration: underline dashed var(--minus); text-underline-offset: .2em; }
.answers [data-to] { scroll-margin: 55vh 0 2rem; }
[data-to]:focus { outline: none; }
.on { background: var(--accent); color: var(--card); box-shadow: 0 0 0 .1em var(--accent); }
#said {
  margin: .625rem 0 0; padding-top: .5rem; border-top: 1px solid var(--line); min-height: 3.5rem;
  color: var(--ink); font-size: .9375rem; line-height: 1.5rem; overflow-wrap: anywhere;
  unicode-bidi: plaintext;
}
details { margin-top: 1.5rem; } summary { cursor: pointer; color: var(--quiet); }
.wide { overflow-x: auto; }
table {
  border-collapse: collapse; margin-top: .5rem; font-size: .875rem; font-variant-numeric: tabular-nums;
}
th, td { padding: .125rem .75rem .125rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
td { max-width: 14rem; overflow-wrap: break-word; }
td:nth-child(n+3), th:nth-child(n+3) { text-align: right; white-space: nowrap; }
td:last-child, th:last-child { padding-right: 0; }
@media (max-width: 30rem) {
  body { font-size: 1rem; }
  table { font-size: .8125rem; }
  .query .text { font-size: 1.125rem; }
}
@media print { .query { position: static; box-shadow: none; } }
"""

# A title shows the same words without the script, but covers the answer. So the script moves the titles away.
SCRIPT = """
"use strict";
(() => {
  const said = document.getElementById("said");
  const elements = document.querySelectorAll("[data-to]");
  let pinned = null;
  const show = (element) => {
    for (const lit of document.querySelectorAll(".on")) lit.classList.remove("on");
    said.textContent = element ? element.dataset.said : said.dataset.hint;
    if (!element) return;
    element.classList.add("on");
    for (const name of element.dataset.to.split(" ")) document.getElementById(name).classList.add("on");
  };
  const reveal = (element) => {
    document.getElementById(element.dataset.to.split(" ")[0]).scrollIntoView({ block: "nearest" });
  };
  for (const element of elements) {
    element.dataset.said = element.title;
    element.removeAttribute("title");
    element.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") show(element); });
    element.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") show(pinned); });
    element.addEventListener("focus", () => { pinned = element; show(element); });
    element.addEventListener("blur", () => { pinned = null; show(null); });
    element.addEventListener("click", () => { pinned = element; show(element); reveal(element); });
    element.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); reveal(element); }
      if (event.key === "Escape") element.blur();
    });
  }
})();
"""
