// Drift: records that arrived after the training, compared with the training's.

import { get } from './api.js';
import { badge, bar, byId, count, el, moment, number, percent, pretty } from './page.js';
import { t } from './i18n.js';

/** A report is requested again after this time, in milliseconds. */
const KEEP = 30_000;

let wanted = null;

/** Requested when scrolled into view, because the server reads records for it. */
export function show({ info, models }) {
  const model = models.at(-1);
  byId('drift-card').hidden = !model;
  if (!model) return;
  const of = `${info.name}@${model.slice}@${model.version}`;
  if (wanted?.of === of && Date.now() - wanted.at < KEEP) {
    if (wanted.report) draw(wanted.report);
    return;
  }
  wanted?.sight?.disconnect();
  const asked = { of, at: Date.now(), report: wanted?.of === of ? wanted.report : null };
  wanted = asked;
  if (asked.report) draw(asked.report);
  else said('', t('drift_waiting'));
  asked.sight = new IntersectionObserver(async (seen) => {
    if (!seen.some((one) => one.isIntersecting)) return;
    asked.sight.disconnect();
    try {
      const report = await get(`/api/segments/${encodeURIComponent(info.name)}/drift?model=${model.slice}`);
      if (wanted !== asked) return;
      asked.report = report;
      draw(report);
    } catch (error) {
      if (wanted === asked) said('', error.message);
    }
  }, { rootMargin: '200px' });
  asked.sight.observe(byId('drift-card'));
}

function said(state, text) {
  byId('drift-card').dataset.state = state;
  byId('drift-said').textContent = text;
  byId('drift-figures').replaceChildren();
}

function draw(report) {
  const { state, rows, read, since, began, features, clusters, unlike, unlike_before: before } = report;
  const figures = { n: count(read), of: count(rows), since: since ? moment(since) : '' };
  if (state === 'too few') return said(state, t(rows === 0 ? 'drift_nothing' : 'drift_few', figures));
  const start = began ? ` ${t('drift_began', { time: moment(began) })}` : '';
  said(state, state === 'ok' ? t('drift_ok', figures) : `${t('drift_drifting', figures)}${start}`);
  const feature = (one) => el('tr', { class: one.direction === 'none' ? null : 'drifts' },
    el('th', { scope: 'row' }, pretty(one.name)),
    el('td', {}, number(one.psi, 3)),
    el('td', {}, t(`drift_${one.direction}`)),
    el('td', {}, `${percent(one.missing_before)} → ${percent(one.missing)}`));
  const cluster = (one) => el('tr', {},
    el('th', { scope: 'row' }, el('span', { class: 'in-segment' }, badge(one.cluster), one.description)),
    el('td', { class: 'wide' }, `${percent(one.share_before)} → ${percent(one.share)}`, bar(one.share_before, 'before'), bar(one.share)));
  const head = (...names) => el('thead', {}, el('tr', {}, names.map((name) => el('th', { scope: 'col' }, name))));
  byId('drift-figures').replaceChildren(
    el('table', {}, head(t('feature'), 'PSI', t('drift_change'), t('drift_missing')), el('tbody', {}, features.map(feature))),
    el('table', {}, head(t('segment'), t('drift_share')), el('tbody', {}, clusters.map(cluster))),
    el('p', { class: 'said' }, t('drift_unlike', { now: percent(unlike), before: percent(before) })),
  );
}
