"""The page's style: two sets of colours; forms and names tell series apart without them."""

LIGHT = (
    *("#0b63b5", "#c24a00", "#00805c", "#a63d86", "#8a6400", "#2f86c9", "#6b48a8", "#5c6470"),
    *("#b3261e", "#3f7d20", "#00838f", "#ad5b6f"),
)
DARK = (
    *("#6cb2ff", "#ff9a57", "#3ddca6", "#f08fd0", "#e2b93b", "#8fd0ff", "#bda2ff", "#aab4c0"),
    *("#ff8f86", "#9bd770", "#4fd3e0", "#f2a7b6"),
)


def _colors(shades: tuple[str, ...]) -> str:
    return "".join(f"--s{number}:{shade};" for number, shade in enumerate(shades))


_SERIES = "".join(
    f".mark.c{n}{{fill:var(--s{n})}}.line.c{n},.span.c{n}{{stroke:var(--s{n})}}" for n in range(8)
) + "".join(f".b{n}{{fill:var(--s{n})}}" for n in range(12))

STYLE = (
    ":root{color-scheme:light dark;--paper:#fdfdfb;--ink:#1d2126;--soft:#56606b;--rule:#d9dde1;"
    "--box:#f3f4f2;--band:#e3f1e8;--link:#0b57a4;--warn:#8a4b00;" + _colors(LIGHT) + "}"
    "@media (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e7eaee;--soft:#a3adb8;"
    "--rule:#343b43;--box:#1c2126;--band:#17301f;--link:#86bfff;--warn:#ffbe73;"
    + _colors(DARK)
    + "}}"
    "*{box-sizing:border-box}"
    "body{margin:0 auto;max-width:62rem;padding:1.5rem 1.25rem 4rem;background:var(--paper);"
    "color:var(--ink);font:16px/1.55 system-ui,-apple-system,'Segoe UI',sans-serif}"
    "h1{font-size:2rem;margin:0 0 .3rem;letter-spacing:-.01em}"
    "h2{font-size:1.35rem;margin:0 0 .4rem}"
    ".lead{color:var(--soft);margin:0 0 1rem}section{margin:2.2rem 0;padding-top:1.4rem;"
    "border-top:1px solid var(--rule)}section>p{max-width:44rem}"
    "nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;list-style:none;padding:0;margin:0}"
    "nav small{color:var(--soft)}a{color:var(--link)}"
    "a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:3px solid var(--link);"
    "outline-offset:2px}"
    ".skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:var(--paper);"
    "padding:.4rem}"
    "figure{margin:1rem 0 .5rem;padding:.75rem;background:var(--box);border:1px solid var(--rule);"
    "border-radius:8px}figure>svg{display:block;width:100%;height:auto}"
    "figcaption{font-weight:600;margin-bottom:.4rem}"
    ".legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;list-style:none;padding:0;"
    "margin:.5rem 0 0;font-size:.9rem}.legend li{display:flex;align-items:center;gap:.35rem}"
    ".key{width:16px;height:16px;flex:none}"
    ".scroll{overflow-x:auto;margin:.8rem 0}table{border-collapse:collapse;font-size:.92rem;"
    "width:100%}caption{text-align:left;color:var(--soft);padding:.2rem 0}"
    "th,td{padding:.35rem .7rem;border-bottom:1px solid var(--rule);text-align:right;"
    "font-variant-numeric:tabular-nums;vertical-align:top}td{white-space:nowrap}"
    ".words td,td.long{white-space:normal;text-align:left;overflow-wrap:anywhere}"
    "th{font-weight:600}tbody th{min-width:8rem}"
    "tbody th,thead th:first-child,.words td,.words th{text-align:left}"
    "details{margin:.7rem 0;color:var(--soft);font-size:.9rem}summary{cursor:pointer}"
    "code{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.9em;overflow-wrap:anywhere}"
    ".missing,.notice{color:var(--warn)}.missing{font-style:italic}"
    "dt{font-weight:600;margin-top:.6rem}dd{margin:0 0 0 1rem}.entry{color:var(--ink)}"
    "text{fill:var(--ink);font:12px system-ui,-apple-system,'Segoe UI',sans-serif}"
    ".tick,.note{fill:var(--soft)}.axis{font-size:13px}.label{font-weight:600}"
    ".grid{stroke:var(--rule);stroke-width:1}.rule{stroke:var(--soft);stroke-width:1.5;"
    "stroke-dasharray:5 4}.band{fill:var(--band)}.span{stroke-width:2}"
    ".line{fill:none;stroke-width:2}.mark{stroke:var(--box);stroke-width:1.5}"
    ".bar{stroke:var(--box);stroke-width:1}"
    + _SERIES
    + "@media (max-width:40rem){figure{overflow-x:auto}figure>svg{min-width:34rem}}"
    "@media print{nav,.skip{display:none}}"
)
