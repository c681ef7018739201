// Live figures of the stream and the state of the connection.

import { ago, byId, bytes, clock, count, el, number, svg } from './page.js';
import { t } from './i18n.js';

/** Samples in the sparkline of the rate, one per second. */
const SHOWN = 90;

const rates = [];
let last = null;
let lost = false;

/** Accepts a new status. Returns whether the models in service changed. */
export function hear(status) {
  const before = last;
  last = { status, at: Date.now() };
  lost = false;
  rates.push(status.rate);
  if (rates.length > SHOWN) rates.shift();
  show();
  return JSON.stringify(before?.status.segmentations) !== JSON.stringify(status.segmentations);
}

export function lose() {
  lost = true;
  show();
}

/** Estimate of the server's current time. */
export const now = () => (last ? new Date(last.status.now).getTime() + Date.now() - last.at : Date.now());

export const status = () => last?.status;

/** Updates all figures on the page. */
export function show() {
  const pill = byId('connection');
  pill.dataset.state = lost ? 'lost' : last ? 'live' : 'waiting';
  const text = lost ? (last ? t('lost', { time: clock(last.at) }) : t('unreachable')) : t(last ? 'live' : 'connecting');
  if (byId('connection-text').textContent !== text) byId('connection-text').textContent = text;
  if (!last) return;
  const { status } = last;
  byId('headline').textContent = t('records_n', { n: count(status.records), one: status.records === 1 });
  document.title = `${count(status.records)} · tercile`;
  byId('summary').textContent = summary(status);
  byId('version').textContent = `tercile ${status.tercile}`;
  notices(status);
  facts(status);
}

function summary(status) {
  const names = status.segmentations.length;
  const serving = models(status);
  if (status.records === 0) return t('summary_empty');
  if (serving === 0) return t(status.ready ? 'summary_refused' : 'summary_training');
  return t('summary', { segmentations: count(names), models: count(serving) });
}

const models = (status) => status.segmentations.flatMap((one) => one.slices).filter((slice) => slice.version !== undefined).length;

function notices(status) {
  const said = [];
  const apart = Math.round((last.at - new Date(status.now)) / 60_000);
  if (Math.abs(apart) >= 2) said.push(t('clock_apart', { minutes: count(Math.abs(apart)) }));
  if (status.stale) said.push(t('stale'));
  for (const gap of status.ingest?.halted ?? []) said.push(t('halted', { gap }));
  for (const one of status.segmentations) {
    for (const slice of one.slices.filter((slice) => slice.refused)) {
      const key = slice.version === undefined ? 'refused' : 'refused_old';
      said.push(t(key, { name: one.name, slice: slice.slice, why: slice.refused }));
    }
    for (const slice of one.slices.filter((slice) => slice.fault)) {
      said.push(t('fault', { name: one.name, slice: slice.slice, why: slice.fault }));
    }
  }
  const now = said.join('\n');
  const box = byId('notices');
  if (box.dataset.said === now) return;
  box.dataset.said = now;
  box.replaceChildren(...said.map((text) => el('p', { class: 'notice' }, text)));
}

function facts(status) {
  const all = status.segmentations.length * 3;
  const { ingest } = status;
  const waiting = ingest ? ingest.partitions.length : 0;
  const trained = status.trained_at;
  const list = [
    ['rate', number(status.rate, 3), rates.some((rate) => rate > 0) ? spark() : t('quiet')],
    ['lag', ingest ? count(ingest.lag) : '–', ingest ? t('partitions_n', { n: count(waiting), one: waiting === 1 }) : t('no_ingest')],
    ['unreadable', count(status.unreadable), status.unreadable > 0 ? el('a', { href: '#unreadable' }, t('look')) : t('none_yet'), status.unreadable > 0],
    ['files', count(status.files), bytes(status.bytes)],
    ['trained', trained ? ago(trained, now()) : '–', trained ? clock(trained) : t('not_yet')],
    ['models', count(models(status)), t('of_n', { n: count(all) })],
  ];
  const box = byId('facts');
  if (box.children.length === 0) {
    for (const [name] of list) {
      const value = el('dd', { class: 'value', id: `fact-${name}` });
      box.append(el('div', {}, el('dt', { id: `term-${name}` }), value, el('dd', { class: 'note', id: `note-${name}` })));
    }
  }
  for (const [name, value, note, warm] of list) {
    byId(`term-${name}`).textContent = t(`fact_${name}`);
    byId(`fact-${name}`).textContent = value;
    byId(`fact-${name}`).classList.toggle('warm', Boolean(warm));
    const shown = byId(`note-${name}`);
    // Replacing the link each second would make it unclickable.
    if (typeof note === 'string' ? shown.textContent !== note : note.tagName !== 'A' || shown.textContent !== note.textContent) {
      shown.replaceChildren(note);
    }
  }
}

function spark() {
  const most = Math.max(...rates, 1e-9);
  const place = (rate, i) => `${((i + SHOWN - rates.length) / (SHOWN - 1)) * 100},${19 - (rate / most) * 17}`;
  const line = rates.map(place).join('L');
  return svg('svg', { class: 'spark', viewBox: '0 0 100 20', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, svg('path', { d: `M${line}` }));
}
