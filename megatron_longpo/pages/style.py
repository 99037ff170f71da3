"""The style sheet of the report."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d6dae0;
  --neutral: #7a8699; --chosen: #1f6fc4; --rejected: #c2561a; --tint: #eef1f5; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1d2126; --ink: #e4e8ed; --soft: #9aa4b0;
  --line: #363c44; --neutral: #8391a5; --chosen: #6cb0f5; --rejected: #f0985f; --tint: #262b32; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.2rem; margin: 40px 0 12px; }
h3 { font-size: .95rem; margin: 0 0 8px; }
p { margin: 4px 0 12px; }
figure { margin: 0; }
.soft { color: var(--soft); }
.small { font-size: .85rem; }
.grid { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); margin-top: 12px; }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 20px; }
.figures > * { flex: 1 1 200px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; min-width: 0; }
.figure b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
tr:last-child > td { border-bottom: 0; }
.bars { display: grid; gap: 8px; margin: 0; }
.bars .row { display: grid; grid-template-columns: 1fr auto; gap: 0 12px; overflow-wrap: anywhere; }
.bars .bar { grid-column: 1 / -1; height: 6px; border-radius: 3px; background: var(--tint); overflow: hidden; }
.bars .bar i { display: block; height: 100%; min-width: 2px; background: var(--neutral); }
.sample { margin-bottom: 16px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.question { font-weight: 600; margin: 4px 0 10px; }
.excerpt { color: var(--soft); border-left: 3px solid var(--line); padding-left: 12px; margin: 0 0 12px; font-size: .9rem; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; }
.side { border-top: 3px solid; padding: 8px 12px 10px; background: var(--tint); border-radius: 0 0 6px 6px; min-width: 0; }
.side .text { max-height: 30em; overflow-y: auto; }
.chosen { border-color: var(--chosen); }
.rejected { border-color: var(--rejected); }
.chosen h4 { color: var(--chosen); }
.rejected h4 { color: var(--rejected); }
h4 { font-size: .85rem; margin: 0 0 4px; }
h4 span { color: var(--soft); font-weight: 400; }
.tags { display: flex; flex-wrap: wrap; gap: 6px; }
.tag { font-size: .8rem; background: var(--tint); border: 1px solid var(--line); border-radius: 12px; padding: 1px 10px;
  max-width: 100%; overflow-wrap: anywhere; }
.tag:first-child { font-weight: 600; }
details summary { cursor: pointer; }
.settings td { white-space: normal; overflow-wrap: anywhere; text-align: left; vertical-align: top; }
.settings td:first-child { color: var(--soft); width: 40%; }
@media (max-width: 640px) { .sides { grid-template-columns: 1fr; } .figures > * { flex-basis: 140px; }
  main { padding: 16px 10px 48px; } .card { padding: 12px; }
  table { font-size: .8rem; } th { font-size: .75rem; } th, td { padding: 5px 4px; } td:first-child { white-space: normal; } }
"""
"""Colours have a light and a dark set; widths from a phone's up. Nothing is fetched."""
