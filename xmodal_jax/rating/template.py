"""The HTML of a rating page: style, markup and script, with one placeholder for the data (see `rating.page`).

The page loads nothing from the network and runs no script but its own (its content security policy forbids it), runs
from a local file, and keeps the answers in the browser until the rater saves them. Trials and samples have random ids.
"""

from xmodal_jax.report.page import policy

_MARK = "@@DATA@@"
"""Placeholder of the page's data, which are JSON that is safe inside a script."""


def render(data: str) -> str:
    """The HTML of the page with its data.

    Args:
      data: JSON that is safe inside a script: with ``<`` escaped.
    """
    script = _SCRIPT.replace(_MARK, data)
    head = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{policy(styles=[_CSS], scripts=[script])}\n"
        f"<title>Rating</title>\n<style>{_CSS}</style></head>"
    )
    return f"{head}{_BODY}<script>{script}</script></body></html>\n"


_CSS = """
:root{--paper:#f5f6f8;--card:#fff;--ink:#1f2937;--muted:#6b7280;--line:#d5d9e0;--soft:#eef1f5;
--accent:#0072b2;--on:#fff;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--paper:#0f1217;--card:#171b22;--ink:#e6e9ef;--muted:#9aa4b2;
--line:#353d4a;--soft:#1f252e;--accent:#56b4e9;--on:#0f1217}}
*{box-sizing:border-box}
[hidden]{display:none!important}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif}
main{max-width:980px;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;line-height:1.25;margin:.6rem 0;letter-spacing:-.01em}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.2rem}
.muted{color:var(--muted);font-size:.9rem}
.top{display:flex;align-items:center;gap:.8rem;margin-bottom:.8rem}
progress{flex:1;height:.6rem;accent-color:var(--accent)}
.count{font-variant-numeric:tabular-nums;white-space:nowrap}
blockquote{margin:0 0 .6rem;font-size:1.35rem;line-height:1.35;font-weight:600;text-align:center;
overflow-wrap:anywhere}
.question{text-align:center;margin:0 0 1rem;color:var(--muted)}
.samples{display:flex;justify-content:center;gap:1rem;margin-bottom:1rem}
.sample{flex:0 1 400px;min-width:0;padding:6px;background:var(--soft);border:3px solid var(--line);border-radius:12px}
.sample img{display:block;width:100%;max-height:62vh;object-fit:contain;border-radius:6px}
.sample img.pixels{image-rendering:pixelated}
button{font:inherit;color:inherit;background:var(--soft);border:1px solid var(--line);border-radius:10px;
padding:.6rem .9rem;min-height:2.9rem;cursor:pointer;touch-action:manipulation}
button.sample{border-width:3px;padding:6px;min-height:0}
button:hover{border-color:var(--accent)}
button:focus-visible,input:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
button.main,button[aria-pressed=true]:not(.sample){background:var(--accent);color:var(--on);
border-color:var(--accent)}
button.sample[aria-pressed=true]{border-color:var(--accent)}
button:disabled{opacity:.45;cursor:default}
.row{display:flex;gap:.6rem;justify-content:center;flex-wrap:wrap}
.choices button{flex:1 1 0;max-width:15rem}
.scale{border:2px solid transparent;border-radius:12px;padding:.5rem .7rem;margin:0 auto .5rem;max-width:34rem}
.scale.now{border-color:var(--line);background:var(--paper)}
.scale .ends{display:flex;justify-content:space-between}
.row.first{justify-content:flex-start}
.scale .row{flex-wrap:nowrap}
.scale button{flex:1 1 0;padding:.5rem 0}
.foot{display:flex;justify-content:space-between;gap:.6rem;margin-top:.8rem;align-items:center}
kbd{border:1px solid var(--line);border-bottom-width:2px;border-radius:5px;padding:0 .35rem;font:inherit;
font-size:.85em}
input{font:inherit;color:inherit;background:var(--paper);border:1px solid var(--line);border-radius:10px;
padding:.6rem .8rem;width:100%;max-width:22rem;display:block;margin:.3rem 0 1rem}
.warning{color:#b3261e}
@media(prefers-color-scheme:dark){.warning{color:#f0727f}}
@media(min-width:760px){.rating .work{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:1.2rem;
align-items:center}}
@media(max-width:560px){main{padding:.5rem}.card{padding:.7rem}.samples{gap:.5rem}
blockquote{font-size:1.1rem}.keys{display:none}.choices button{padding:.6rem .3rem}}
"""

_BODY = """<body><main>
<section id="start" class="card"><h1 class="title"></h1><p id="ask"></p>
<p class="muted" id="how"></p>
<label>Your name or number<input id="rater" maxlength="60" autocomplete="off"></label>
<button class="main" id="begin">Start</button>
<p class="warning" id="unkept" hidden>This browser does not keep the answers: save them before you close
the page.</p></section>
<section id="trial" hidden>
<div class="top"><progress id="bar" max="1" value="0"></progress><span class="count" id="count"
 aria-live="polite"></span></div>
<div class="card"><blockquote id="caption"></blockquote><p class="question" id="question"></p>
<div class="work"><div class="samples" id="samples"></div><div id="answer"></div></div></div>
<div class="foot"><button id="back">Back</button><span class="muted keys" id="keys"></span>
<button class="save">Save CSV</button></div></section>
<section id="done" class="card" hidden><h1>Thank you</h1><p id="summary"></p>
<p>Save the file and send it to whoever asked you.</p>
<div class="row first"><button class="main save">Save CSV</button>
<button id="review">Back to the last</button><button id="fresh">Another rater</button></div></section>
</main>
"""

_SCRIPT = r"""
"use strict";
const data = @@DATA@@;
const el = id => document.getElementById(id);
const pair = data.mode === "preference";
const store = "rating:" + data.page;
let state = {rater: "", answers: {}}, at = 0, part = 0, shown = 0, spent = 0;

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(store));
    if (kept && kept.answers) state = kept;
    localStorage.setItem(store, JSON.stringify(state));
  } catch (error) { el("unkept").hidden = false; }
}
function keep() {
  try { localStorage.setItem(store, JSON.stringify(state)); } catch (error) { el("unkept").hidden = false; }
}
const complete = trial => {
  const answer = state.answers[trial.id];
  return Boolean(answer) && (pair ? Boolean(answer.choice) : answer.marks.every(Boolean));
};
const answered = () => data.trials.filter(complete).length;
const seen = name => { for (const id of ["start", "trial", "done"]) el(id).hidden = id !== name; };
// Time counts while the page can be seen.
const clock = () => spent + (document.hidden || !shown ? 0 : (performance.now() - shown) / 1000);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { if (shown) spent += (performance.now() - shown) / 1000; shown = 0; }
  else shown = performance.now();
});

function make(tag, attributes, text) {
  const node = document.createElement(tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  if (text !== undefined) node.textContent = text;
  return node;
}
function picture(id, label) {
  const image = make("img", {src: data.samples[id], alt: label});
  image.addEventListener("load", () => {
    if (Math.max(image.naturalWidth, image.naturalHeight) <= 160) image.className = "pixels";
  });
  return image;
}
// The second half of a double click is no answer to what it brought up.
const early = () => performance.now() - shown < 200;
function choose(choice) {
  if (early()) return;
  const trial = data.trials[at];
  state.answers[trial.id] = {choice, seconds: clock()};
  keep();
  forward();
}
function mark(index, value) {
  if (early()) return;
  const trial = data.trials[at];
  const answer = state.answers[trial.id] || {marks: data.scales.map(() => 0)};
  answer.marks[index] = value;
  answer.seconds = clock();
  state.answers[trial.id] = answer;
  keep();
  part = answer.marks.findIndex(value => !value);
  if (part < 0) forward(); else draw();
}
function forward() {
  if (at + 1 < data.trials.length) show(at + 1);
  else finish();
}
function finish() {
  const open = data.trials.findIndex(trial => !complete(trial));
  if (open >= 0) { show(open); return; }
  shown = 0;
  el("summary").textContent = "All " + data.trials.length + " are answered.";
  seen("done");
}
function show(index) {
  at = index;
  const answer = state.answers[data.trials[at].id];
  spent = answer ? answer.seconds : 0;
  shown = performance.now();
  part = answer && !pair ? Math.max(0, answer.marks.findIndex(value => !value)) : 0;
  const trial = data.trials[at], samples = el("samples");
  samples.replaceChildren();
  for (const side of pair ? ["left", "right"] : ["left"]) {
    const frame = make(pair ? "button" : "div", {class: "sample"});
    frame.append(picture(trial[side], pair ? side + " sample" : "sample"));
    if (pair) { frame.dataset.choice = side; frame.addEventListener("click", () => choose(side)); }
    samples.append(frame);
  }
  el("caption").textContent = trial.caption;
  draw();
  seen("trial");
  window.scrollTo(0, 0);
}
function draw() {
  const answer = state.answers[data.trials[at].id], box = el("answer");
  box.replaceChildren();
  el("count").textContent = (at + 1) + " of " + data.trials.length + " (" + answered() + " answered)";
  el("bar").value = answered() / data.trials.length;
  el("back").disabled = at === 0;
  if (pair) {
    const row = make("div", {class: "row choices"});
    for (const [choice, text] of [["left", "\u2190 Left"], ["tie", "No difference"], ["right", "Right \u2192"]]) {
      const button = make("button", {}, text);
      button.dataset.choice = choice;
      button.addEventListener("click", () => choose(choice));
      row.append(button);
    }
    box.append(row);
    for (const button of el("trial").querySelectorAll("[data-choice]"))
      button.setAttribute("aria-pressed", String(Boolean(answer) && answer.choice === button.dataset.choice));
    return;
  }
  data.scales.forEach((scale, index) => {
    const now = index === part ? " now" : "";
    const group = make("div", {class: "scale" + now, role: "group", "aria-label": scale.text});
    group.append(make("div", {}, scale.text));
    const row = make("div", {class: "row"});
    for (let value = 1; value <= 5; value++) {
      const pressed = Boolean(answer) && answer.marks[index] === value;
      const button = make("button", {"aria-pressed": String(pressed)}, value);
      button.addEventListener("click", () => mark(index, value));
      row.append(button);
    }
    const ends = make("div", {class: "ends muted"});
    ends.append(make("span", {}, scale.low), make("span", {}, scale.high));
    group.append(row, ends);
    box.append(group);
  });
}
function begin() {
  const name = el("rater").value.trim();
  if (!name) { el("rater").focus(); return; }
  state.rater = name;
  keep();
  finish();
}
// A spreadsheet would take such a name for a formula and run it; the apostrophe makes it a text. It is removed when the
// answers are read.
const plain = text => /^'*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]/.test(text) ? "'" + text : text;
function csv() {
  const quote = text => '"' + plain(String(text)).replace(/"/g, '""') + '"';
  const lines = ["trial,left,right,choice,seconds,rater"];
  for (const trial of data.trials) {
    if (!complete(trial)) continue;
    const answer = state.answers[trial.id];
    const choice = pair ? answer.choice : data.scales.map((scale, k) => scale.letter + answer.marks[k]).join("");
    const seconds = answer.seconds.toFixed(2);
    lines.push([trial.id, trial.left, trial.right || "", choice, seconds, quote(state.rater)].join(","));
  }
  return lines.join("\r\n") + "\r\n";
}
function save() {
  const link = make("a", {download: "answers-" + (state.rater.replace(/[^\w-]+/g, "_") || "rater") + ".csv"});
  link.href = URL.createObjectURL(new Blob([csv()], {type: "text/csv"}));
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target === el("rater")) { if (event.key === "Enter") begin(); return; }
  if (el("trial").hidden) return;
  const key = event.key;
  let used = true;
  if (key === "Backspace") { if (at > 0) show(at - 1); }
  else if (pair && key === "ArrowLeft") choose("left");
  else if (pair && key === "ArrowRight") choose("right");
  else if (pair && key === "ArrowDown") choose("tie");
  else if (!pair && key >= "1" && key <= "5" && key.length === 1) mark(part < 0 ? 0 : part, Number(key));
  else if (!pair && key === "ArrowUp") { part = Math.max(0, part - 1); draw(); }
  else if (!pair && key === "ArrowDown") { part = Math.min(data.scales.length - 1, part + 1); draw(); }
  else if (!pair && key === "ArrowLeft") { if (at > 0) show(at - 1); }
  else if (!pair && key === "ArrowRight") { if (complete(data.trials[at])) forward(); }
  else used = false;
  if (used) event.preventDefault();
});
document.title = data.title;
document.body.className = data.mode;
for (const node of document.querySelectorAll(".title")) node.textContent = data.title;
el("ask").textContent = el("question").textContent = data.question;
el("how").textContent = pair
  ? "Two samples at a time: choose one by a click or by the left and right arrow keys; down is for no difference."
  : "One sample at a time, two marks from 1 to 5: click, or type the digits; the keys up and down choose which.";
el("keys").textContent = pair ? "\u2190 left \u00b7 \u2193 no difference \u00b7 \u2192 right \u00b7 Backspace: back"
  : "1\u20135 marks \u00b7 \u2191 \u2193 which \u00b7 \u2190 \u2192 back, on";
for (const node of document.querySelectorAll(".save")) node.addEventListener("click", save);
el("begin").addEventListener("click", begin);
el("back").addEventListener("click", () => { if (at > 0) show(at - 1); });
el("review").addEventListener("click", () => show(data.trials.length - 1));
el("fresh").addEventListener("click", () => {
  if (!confirm("Remove these answers from the browser? Save them first.")) return;
  state = {rater: "", answers: {}};
  keep();
  location.reload();
});
load();
el("rater").value = state.rater;
if (answered()) el("begin").textContent = "Go on (" + answered() + " of " + data.trials.length + " answered)";
"""
