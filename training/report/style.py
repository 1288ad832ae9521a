"""How the report looks: one column of cards, light by default, dark where the reader's system asks for it."""

CSS = """
:root{--paper:#f4f6f9;--card:#fff;--ink:#1f2a37;--muted:#5b6775;--line:#e1e6ec;--good:#2e7d4f;--warn:#b86e00;
--bad:#b3261e;--note:#1f5fa8}
@media (prefers-color-scheme:dark){:root{--paper:#12171e;--card:#1b222c;--ink:#e6ebf1;--muted:#9aa7b5;--line:#2d3744;
--good:#5cb885;--warn:#e0a03a;--bad:#ef7a72;--note:#7fb2ea}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1080px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:1.7rem;margin:8px 0 0;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 8px}
h3{font-size:.95rem;margin:20px 0 8px;color:var(--muted)}
p{margin:0 0 10px;max-width:75ch}
header p,.small,figcaption{color:var(--muted)}
.small,figcaption{font-size:.86rem}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin:16px 0}
.verdict{border-left:6px solid var(--good)}
.verdict.warning{border-left-color:var(--warn)}
.verdict.alarm{border-left-color:var(--bad)}
.verdict.good h2{color:var(--good)}.verdict.warning h2{color:var(--warn)}.verdict.alarm h2{color:var(--bad)}
.warned{list-style:none;margin:14px 0 0;padding:0;border-top:1px solid var(--line)}
.warned li{display:flex;gap:12px;padding:8px 0;border-bottom:1px solid var(--line);font-size:.93rem}
.warned li:last-child{border-bottom:0;padding-bottom:0}
.warned b{flex:0 0 5.4em;color:var(--note)}
.warned .alarm b{color:var(--bad)}.warned .warning b{color:var(--warn)}
.warned span{overflow-wrap:anywhere;min-width:0}
figure{margin:0}
figure img{display:block;width:100%;height:auto;background:#fff;border-radius:6px}
figcaption{margin-top:6px}
.sharp{image-rendering:pixelated}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:24px 28px;align-items:start}
.charts>*{max-width:640px;min-width:0}
@media (min-width:880px){.tall{grid-row:span 2}}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr));gap:18px 24px}
.small-cards{grid-template-columns:repeat(auto-fill,minmax(min(100%,210px),1fr))}
.four{display:grid;grid-auto-flow:column;grid-auto-columns:1fr;gap:5px}
.four span{display:block;text-align:center;font-size:.74rem;color:var(--muted);margin-top:2px}
.card figcaption{margin-top:2px}
.item{overflow-wrap:anywhere;color:var(--ink)}
.legend{display:flex;flex-wrap:wrap;align-items:center;gap:4px 10px;font-size:.82rem;color:var(--muted);margin:6px 0}
.legend i{position:relative;display:block;width:180px;height:11px;border-radius:3px;border:1px solid var(--line)}
.legend u{position:absolute;left:33.3%;top:-3px;bottom:-3px;width:2px;background:var(--ink)}
.legend span:first-child{min-width:5em}
.wide{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 16px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--muted);white-space:nowrap}
tbody tr:last-child>*{border-bottom:0}
td{overflow-wrap:anywhere}
.wide td{white-space:nowrap}
.wide td:nth-child(2){white-space:normal;min-width:8em}
.meaning td:nth-child(2){min-width:15em}
.facts td{word-break:break-word}
.facts{width:100%;margin:0}
.bars{width:100%;max-width:720px}
.bars td{border-bottom:0;padding-top:2px;padding-bottom:2px}
.bars tr.first td{border-top:1px solid var(--line);padding-top:6px}
.bar{min-width:150px;white-space:nowrap}
.bar i{display:inline-block;height:10px;background:var(--note);border-radius:2px;margin-right:6px;max-width:65%}
.bar span{font-size:.82rem;color:var(--muted)}
@media (max-width:600px){main{padding:10px 8px 40px}section{padding:14px 12px}h1{font-size:1.4rem}
.warned li{display:block}.warned b{display:block}th,td{padding-right:10px}
.wide td:nth-child(2){min-width:5em}.bar{min-width:96px}}
@media print{body{background:#fff}section{break-inside:avoid}}
"""
