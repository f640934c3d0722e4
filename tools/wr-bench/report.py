#!/usr/bin/env python3
"""usage: report.py RESULTS.json [SCALING.json]

Writes a page with plots to standard output, from what `wr-bench --json` wrote; with SCALING.json, from a run with many
numbers of threads, also how things scale. All is in the one file: gnuplot draws SVG, which stands in the HTML itself.

Python, because it reads JSON and escapes HTML as it comes, so that this file is only layout: rows in, tables and
gnuplot's own commands out. Nothing is computed here but shares and sums; medians, ratios and verdicts are wr-bench's.
"""
import html
import json
import math
import subprocess
import sys
from collections import Counter

COLOURS = {
    'ours': ['#0b5fa5', '#3f92d2', '#123a63', '#62c0e8'],
    'limit': ['#d97706', '#8a4b00'],
    'peer': ['#7f7f7f', '#5b8c5a', '#8a6fae', '#9c6b4f', '#4f7f87', '#a3a33a', '#b0728f', '#404040', '#c2586a', '#6d7fb3'],
}
MEANING = {'ours': 'ours', 'limit': 'limit: the least that the hardware takes', 'peer': 'peers'}

STYLE = '''
body { font: 15px/1.45 sans-serif; color: #1a1a1a; background: #fff; max-width: 62em; margin: 2em auto; padding: 0 1em }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.2em; border-bottom: 1px solid #ccc } h3 { margin-top: 1.8em }
table { border-collapse: collapse; margin: .6em 0; font-size: 13px } th, td { padding: .15em .7em; text-align: left }
th { border-bottom: 1px solid #999 } tr:nth-child(even) td { background: #f5f5f5 }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.ours { color: #0b5fa5; font-weight: bold } .limit { color: #a85b00 } .peer { color: #555 }
.met { color: #18702c; font-weight: bold } .not { color: #b3261e; font-weight: bold }
svg { max-width: 100%; height: auto } p.key span { margin-right: 1.5em }
'''


def give_up(text):
    print(f'report.py: {text}', file=sys.stderr)
    sys.exit(2)


def load(path):
    try:
        with open(path, encoding='utf-8') as file:
            saved = json.load(file)
    except (OSError, ValueError) as error:
        give_up(f"cannot read '{path}': {error}")
    if not isinstance(saved, dict) or saved.get('program') != 'wr-bench' or 'spreads' not in saved:
        give_up(f"'{path}' is not what wr-bench --json writes")
    return saved


# ---- HTML ---------------------------------------------------------------------------------------------------------

def text(value):
    return html.escape(str(value))


def number(value, digits=None):
    if value is None:
        return '-'
    if digits is None:
        digits = 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f'{value:,.{digits}f}'


def duration(ns):
    for unit, size in (('s', 1e9), ('ms', 1e6), ('µs', 1e3)):
        if ns >= size:
            return f'{ns / size:.3g} {unit}'
    return f'{ns:.3g} ns'


def table(names, rows):
    """Names that begin with > are of columns of numbers. Cells are text, or (text, class)."""
    def cell(value, name):
        value, extra = value if isinstance(value, tuple) else (value, '')
        classes = ' '.join(filter(None, ['n' if name.startswith('>') else '', extra]))
        return f'<td class="{classes}">{text(value)}</td>' if classes else f'<td>{text(value)}</td>'

    print('<table><tr>' + ''.join(f'<th{" class=n" if name.startswith(">") else ""}>{text(name.lstrip(">"))}</th>'
                                  for name in names) + '</tr>')
    for row in rows:
        print('<tr>' + ''.join(cell(value, name) for value, name in zip(row, names)) + '</tr>')
    print('</table>')


def by_contest(rows):
    """(group, contest) -> its rows, in their order."""
    contests = {}
    for row in rows:
        contests.setdefault((row['group'], row['contest']), []).append(row)
    return contests


def colours(rows):
    """subject -> colour; each role has its own."""
    chosen, used = {}, Counter()
    for row in rows:
        if row['subject'] not in chosen:
            tones = COLOURS[row['role']]
            chosen[row['subject']] = tones[used[row['role']] % len(tones)]
            used[row['role']] += 1
    return chosen


# ---- gnuplot ------------------------------------------------------------------------------------------------------

def label(name):
    """A string as gnuplot's commands and data take it."""
    clean = ''.join(c if c.isprintable() and c not in '"\\' else "'" for c in name)
    return f'"{clean}"'


def draw(width, height, commands):
    script = f'''
set encoding utf8
set terminal svg size {width},{height} noenhanced font "sans-serif,12" background "#ffffff"
set border 3 lc rgb "#666666"
set tics nomirror textcolor rgb "#333333"
set grid xtics ytics lc rgb "#dddddd" lt 1 lw 0.7
''' + commands
    done = subprocess.run(['gnuplot'], input=script, capture_output=True, encoding='utf-8')
    if done.returncode != 0 or '<svg' not in done.stdout:
        give_up(f'gnuplot failed:\n{done.stderr}')
    print(done.stdout[done.stdout.index('<svg'):])  # without the XML declaration


def log_range(low, high):
    """Ends for a logarithmic axis that bars begin on."""
    return 10 ** math.floor(math.log10(low / 1.2)), high * 4


def bars(rows, unit):
    """rows: (name, value, colour), from top to bottom; None is a gap."""
    values = [row[1] for row in rows if row]
    if not values or max(values) <= 0:
        return
    low, high, scale = 0, max(values) * 1.15, ''
    if min(values) > 0 and max(values) > 30 * min(values):
        scale = 'set logscale x\n'
        low, high = log_range(min(values), max(values))
    data = ''.join(f'{len(rows) - i} {row[1]} {int(row[2][1:], 16)} {label(row[0])} {label(number(row[1]))}\n'
                   for i, row in enumerate(rows) if row)
    margin = max(len(row[0]) for row in rows if row) + 2
    draw(900, 75 + 21 * len(rows), f'''{scale}$bars << END
{data}END
set lmargin {margin}
set xrange [{low}:{high}]
set yrange [0.3:{len(rows) + 0.7}]
set ytics scale 0
set grid noytics
set xlabel {label(unit + (', logarithmic' if scale else ''))}
unset key
plot $bars using 2:1:({low}):2:($1-0.36):($1+0.36):3:ytic(4) with boxxyerror fs solid noborder fc rgb variable, \\
     $bars using 2:1:5 with labels left offset 0.5,0
''')


def curves(lines, colour, commands, style):
    """lines: (subject, role, points)."""
    blocks = plots = ''
    for i, (subject, role, points) in enumerate(lines):
        blocks += f'$line{i} << END\n' + ''.join(f'{x} {y}\n' for x, y in points) + 'END\n'
        look = f'lc rgb "{colour[subject]}" lw {3 if role == "ours" else 2} dt {2 if role == "limit" else 1}'
        if style == 'linespoints':
            look += f' pt {1 + i % 13} ps 0.8'
        plots += f'{", " if i else "plot "}$line{i} using 1:2 with {style} {look} title {label(subject)}'
    rows = (len(lines) + 1) // 2
    draw(900, 360 + 20 * rows, blocks + 'set key above left Left reverse maxcols 2 width 2\n' + commands + plots + '\n')


# ---- the parts of the page ------------------------------------------------------------------------------------------

def head(saved):
    print('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>weakref: benchmarks</title>'
          f'<style>{STYLE}</style></head><body>\n<h1>weakref: benchmarks</h1>')
    table(['', ''], [('library', 'weakref ' + saved['version']), ('date', saved['date']),
                     ('processor', f"{saved['processor']}, {saved['processors']} of them"),
                     ('compiler', saved['compiler']), ('kernel', saved['kernel'])])
    print('<p class="key">' + ''.join(f'<span class="{role}">&#9632; {text(MEANING[role])}</span>' for role in MEANING) +
          '</p>')
    absent = {}
    for case in saved['absent']:
        absent.setdefault((case['subject'], case['why']), []).append(case['group'])
    print('<h2>Absent peers</h2>' if absent else '<p>No peer is absent.</p>')
    if absent:
        table(['peer', 'why', 'groups'], [(who, why, ', '.join(dict.fromkeys(groups)))
                                          for (who, why), groups in absent.items()])


def targets(saved):
    print('<h2>Targets</h2>')
    verdict = {True: ('met', 'met'), False: ('NOT MET', 'not'), None: ('not measured', '')}
    table(['target', '>needed', '>goal', '>measured', 'met', 'beside', 'without', 'regime'],
          [(t['what'], t['needed'], t['goal'], t['text'], verdict[t['met']], t['beside'], '; '.join(t['absent']), t['regime'])
           for t in saved['targets']])
    met = Counter(t['met'] for t in saved['targets'])
    print(f'<p>{met[True]} met, {met[False]} not met, {met[None]} not measured.</p>')


def regimes(saved):
    print('''<h2>Regimes</h2>
<p>What it costs to pass a cache line between two processors changes within seconds on a virtual machine, and contended figures go
with it. So the round trip of a cache line is probed before and after each round of two threads or more: near (up to 220 ns),
middle, far (from 800 ns), mixed (it changed: not counted). Medians and ratios are over the rounds of one regime, the most frequent
one of the contest. Compare ratios; nanoseconds of two runs or two regimes say nothing about each other.</p>''')
    rounds = [r['regime'] for case in saved['cases'] if case['threads'] > 1 for r in case['rounds']]
    counts = Counter(rounds)
    if rounds:
        print('<p>Rounds of two threads or more in this run: ' +
              text(', '.join(f'{name} {n}' for name, n in counts.most_common())) + '.</p>')


def case_table(rows):
    table(['', '>threads', '>median, ns', '>min, ns', '>beside ours', 'regime', '>rounds'],
          [((row['subject'], row['role']), row['threads'], number(row['median']), number(row['min']),
            number(row['of_ours']), row['regime'],
            f"{sum(r['regime'] == row['regime'] for r in row['rounds'])} of {len(row['rounds'])}") for row in rows])


def contests(saved):
    print('<h2>Beside peers</h2>\n<p>Nanoseconds per operation and thread, medians: shorter is faster. '
          '<em>Beside ours</em> above 1: ours is faster.</p>')
    about = {group['name']: group['about'] for group in saved['groups']}
    for (group, contest), rows in by_contest(saved['cases']).items():
        print(f'<h3>{text(group)}: {text(contest)}</h3>\n<p>{text(about[group])}</p>')
        colour = colours(rows)
        lines = []
        for threads in sorted({row['threads'] for row in rows}):
            there = [row for row in rows if row['threads'] == threads and row['median'] is not None]
            if lines and there:
                lines.append(None)
            lines += [(f"{row['subject']}, {threads} thr", row['median'], colour[row['subject']])
                      for row in sorted(there, key=lambda row: row['median'])]
        bars(lines, 'ns')
        case_table(rows)


def scaling(saved):
    print('<h2>Scaling</h2>\n<p>Million operations a second by all threads together, from a run of its own; both axes are '
          f'logarithmic. The dashed line stands at the number of processors, {saved["processors"]}: '
          'to its right threads take turns, and nothing should collapse.</p>')
    for (group, contest), rows in by_contest(saved['cases']).items():
        counts = sorted({row['threads'] for row in rows})
        rate = {(row['subject'], row['threads']): row['threads'] * 1e3 / row['median'] for row in rows if row['median']}
        role = {row['subject']: row['role'] for row in rows}
        lines = [(who, role[who], [(n, rate[who, n]) for n in counts if (who, n) in rate]) for who in role]
        lines = [line for line in lines if line[2]]
        if not lines or len(counts) < 2:
            continue
        print(f'<h3>{text(group)}: {text(contest)}</h3>')
        ticks = ', '.join(str(n) for n in counts)
        curves(lines, colours(rows), f'''set logscale x 2
set logscale y 10
set xrange [{counts[0] / 1.15}:{counts[-1] * 1.15}]
set xtics ({ticks})
set xlabel "threads"
set ylabel "million operations a second"
set arrow from {saved['processors']}, graph 0 to {saved['processors']}, graph 1 nohead front dt (6,6) lw 1.5 lc rgb "#333333"
''', 'linespoints')
        table([''] + [f'>{n} thr' for n in counts],
              [[(who, role[who])] + [number(rate.get((who, n))) for n in counts] for who in role])


# wr-bench's buckets: 0 to 3, then four to each power of two.
ENDS = list(range(4)) + [(1 << high) + ((k + 1) << (high - 2)) - 1 for high in range(2, 40) for k in range(4)]


def steps(spread):
    """The share in each bucket, in percent, at the bucket's lower end; empty ones stand below the plot."""
    counts = dict(spread['buckets'])
    ends = [0] + ENDS
    seen = [i for i in range(1, len(ends)) if ends[i] in counts]
    return [(ends[i - 1] + 1, max(100 * counts.get(ends[i], 0) / spread['count'], 1e-9))
            for i in range(max(1, seen[0] - 1), min(len(ends), seen[-1] + 2))]


def spreads(saved):
    if not saved['spreads']:
        return
    print('<h2>Latencies</h2>\n<p>Single operations by the clock on the wall, other programs\' time included; a share of '
          'all in each bucket, four buckets to each power of two. Both axes are logarithmic. Quantiles are at most 25 % too high.</p>')
    for (group, contest), rows in by_contest(saved['spreads']).items():
        rows = [row for row in rows if row['count'] > 0]
        if not rows:
            continue
        print(f'<h3>{text(contest)}</h3>')
        least = min(100 / row['count'] for row in rows)
        high = max(row['max'] for row in rows) * 2
        ticks = ', '.join(f'{label(duration(10 ** p))} 1e{p}' for p in range(0, 12) if 10 ** p <= high)
        curves([(row['subject'], row['role'], steps(row)) for row in rows], colours(rows), f'''set logscale xy
set xrange [{max(1, min(row['min'] for row in rows) / 2)}:{high}]
set yrange [{least / 2}:100]
set xtics ({ticks})
set format y "%g %%"
set ylabel "share of all"
''', 'steps')
        table(['', '>count', '>median', '>90 %', '>99 %', '>99.9 %', '>longest'],
              [((row['subject'], row['role']), number(row['count'], 0)) +
               tuple(duration(row[name]) for name in ('median', 'p90', 'p99', 'p999', 'max')) for row in rows])


def memory(saved):
    if not saved['figures']:
        return
    print('<h2>Memory</h2>')
    for (group, contest), rows in by_contest(saved['figures']).items():
        print(f'<h3>{text(contest)}</h3>')
        colour = colours(rows)
        told = [row for row in rows if row['value'] is not None]
        bars([(row['subject'], row['value'], colour[row['subject']]) for row in told], 'bytes')
        table(['', '>bytes'], [((row['subject'], row['role']), number(row['value'], 1)) for row in rows])


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith('-'):
        print(__doc__.splitlines()[0], file=sys.stderr)
        sys.exit(2)
    saved = [load(path) for path in sys.argv[1:]]
    sys.stdout.reconfigure(encoding='utf-8')
    try:
        head(saved[0])
        targets(saved[0])
        regimes(saved[0])
        contests(saved[0])
        for other in saved[1:]:
            scaling(other)
        spreads(saved[0])
        memory(saved[0])
        print('</body></html>')
    except FileNotFoundError:
        give_up('gnuplot is missing: on Debian and Ubuntu the package gnuplot-nox')
    except (KeyError, TypeError, IndexError) as error:
        give_up(f'a file is not what this wr-bench --json writes: {error!r}')


main()
