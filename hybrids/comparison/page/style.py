"""How the report looks: on a screen light or dark, on a phone, on paper."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --muted: #5b6470; --line: #d8dce1; --soft: #f5f6f8;
  --link: #0b5cad; --good: #11692f; --good-soft: #e3f4e8; --bad: #9a2c12; --bad-soft: #fbe9e4; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e4e7eb; --muted: #9aa4b0; --line: #363c45;
  --soft: #1d2127; --link: #7db7f5; --good: #7fd99a; --good-soft: #17311f; --bad: #f2a38c; --bad-soft: #3a1f18; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-padding-top: 1rem; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 74rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1.25rem; letter-spacing: -0.01em; text-wrap: balance; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 0.75rem; }
p, ul { max-width: 46rem; }
a { color: var(--link); text-underline-offset: 0.15em; text-decoration-thickness: 1px; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 0.86em; }
pre { margin: 0; padding: 0.7rem 0.9rem; background: var(--soft); border-radius: 6px; white-space: pre-wrap;
  overflow-x: auto; line-height: 1.5; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.3rem 1.5rem; margin: 0 0 1rem; }
dt { color: var(--muted); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
nav { color: var(--muted); font-size: 0.9rem; margin: 1.25rem 0 0; }
nav a { margin-right: 1.1rem; display: inline-block; }
.warning { border-left: 4px solid var(--bad); background: var(--bad-soft); padding: 0.65rem 1rem; margin: 1.25rem 0;
  border-radius: 0 6px 6px 0; max-width: none; }
.warning ul { margin: 0.3rem 0 0; padding-left: 1.2rem; }
.note, caption, figcaption { color: var(--muted); font-size: 0.88rem; }
.scroll { overflow-x: auto; margin: 0 0 0.6rem; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 0.9rem; line-height: 1.35; }
caption { text-align: left; padding: 0 0 0.6rem; }
caption span { display: inline-block; position: sticky; left: 0; max-width: min(46rem, calc(100vw - 3rem)); }
.word { white-space: nowrap; }
th, td { padding: 0.45rem 0.7rem; vertical-align: top; text-align: left; border-top: 1px solid var(--line); }
th { font-weight: 600; }
thead th { border-top: 0; border-bottom: 2px solid var(--line); vertical-align: bottom; }
thead th a { color: inherit; text-decoration-color: var(--line); }
th:first-child { padding-left: 0; }
tbody:last-child > tr:last-child > * { border-bottom: 1px solid var(--line); }
.figures td, .figures thead th, .number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
.figures td, td.number { white-space: nowrap; }
.figures thead th { min-width: 6.2rem; }
.figures th:first-child { text-align: left; min-width: 8rem; position: sticky; left: 0; z-index: 1;
  background: var(--page); }
.tables { display: flex; flex-wrap: wrap; gap: 1.5rem 3rem; align-items: flex-start; }
.tables > div { max-width: 100%; min-width: 0; }
.tables table { width: auto; }
.tables caption { color: var(--ink); font-weight: 600; font-size: 1rem; }
.small { display: block; font-size: 0.82em; font-weight: 400; color: var(--muted); }
pre code { font-size: inherit; }
.axis { display: block; font-size: 0.8em; font-weight: 400; color: var(--muted); }
.unit { display: block; font-size: 0.82em; font-weight: 400; color: var(--muted); }
.arrow { font-weight: 400; }
.real > * { background: var(--soft); }
.figures .real th { background: var(--soft); padding-left: 0.5rem; font-weight: 400; }
.figures th:first-child { padding-left: 0.5rem; }
.none, .none sup { color: var(--muted); }
.diverged, .state { color: var(--bad); }
sup { font-size: 0.72em; line-height: 0; margin-left: 0.15em; }
.notes { list-style: none; margin: 0 0 1rem; padding: 0; font-size: 0.82rem; color: var(--muted); max-width: none; }
.notes sup { margin: 0; }
.verdict { display: inline-block; padding: 0.05rem 0.5rem; border-radius: 1rem; font-size: 0.92em; white-space: nowrap;
  background: var(--soft); color: var(--muted); }
.verdict.confirmed { background: var(--good-soft); color: var(--good); }
.verdict.contradicted { background: var(--bad-soft); color: var(--bad); }
.why { min-width: 16rem; }
.words code.small { font-size: 0.82em; }
.runs td { font-variant-numeric: tabular-nums; }
.runs td.settings { min-width: 18rem; overflow-wrap: anywhere; }
tr:target > * { background: var(--good-soft); }
figure { margin: 0 0 1.75rem; }
figcaption { margin-top: 0.45rem; max-width: 46rem; }
.card { background: #ffffff; border: 1px solid var(--line); border-radius: 6px; padding: 4px; overflow-x: auto; }
.card img { display: block; width: 100%; height: auto; margin: 0 auto; }
.chart .card img { min-width: 38rem; max-width: var(--wide, none); }
.grid { display: grid; gap: 1.1rem; align-items: start;
  --even: calc((100% - 1.1rem * (var(--across) - 1)) / var(--across));
  grid-template-columns: repeat(auto-fill, minmax(max(12rem, var(--even)), 1fr)); }
.grid.wide { grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.grid figure { margin: 0; }
.grid figcaption { color: var(--ink); margin-bottom: 0.35rem; margin-top: 0; line-height: 1.3; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (max-width: 40rem) { body { padding: 1.25rem 1rem 3rem; } h1 { font-size: 1.5rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 0.5rem; }
  .grid { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0.8rem; } .grid.wide { grid-template-columns: 1fr; }
  .figures th:first-child { min-width: 6.5rem; } th, td { padding: 0.4rem 0.5rem; } }
@media print { @page { size: A4 landscape; margin: 12mm; }
  :root { color-scheme: light; --page: #ffffff; --ink: #000000; --muted: #444444; --line: #bbbbbb; --soft: #f2f2f2;
  --link: #000000; --good: #11692f; --good-soft: #ffffff; --bad: #9a2c12; --bad-soft: #ffffff; }
  html { font-size: 9.5pt; } body { max-width: none; padding: 0; } nav { display: none; }
  .scroll, .card { overflow: visible; } .card img { min-width: 0 !important; }
  table { font-size: 8pt; } .figures thead th, .figures th:first-child { min-width: 0; position: static; }
  th, td { padding: 0.25rem 0.4rem; } .why, .runs td.settings { min-width: 0; }
  thead { display: table-header-group; } tr, figure, .warning { break-inside: avoid; }
  h2, caption { break-after: avoid; } a { text-decoration: none; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""
