// Model quality: silhouette and inertia of each slice, and the report on k.

import { get } from './api.js';
import { ticksOf } from './axis.js';
import { bar, byId, count, el, number, pairs, sliceName, svg } from './page.js';
import { t } from './i18n.js';

/** Verbal rating of a mean silhouette (Kaufman and Rousseeuw, "Finding groups in data", 1990). */
const word = (silhouette) => t(silhouette > 0.7 ? 'strong' : silhouette > 0.5 ? 'reasonable' : silhouette > 0.25 ? 'weak' : 'no_structure');

let wanted = null;

export function show({ info, models, points }) {
  byId('scores').replaceChildren(...models.map((model) => score(model, points.get(model.slice))));
  const model = models.at(-1);
  byId('k-card').hidden = !model;
  if (model) report(info.name, model);
}

function score(model, sample) {
  const { silhouette } = model;
  const none = silhouette === null || silhouette === undefined;
  const said = none ? t(model.clusters.length < 2 ? 'one_cluster' : 'no_silhouette') : word(silhouette);
  const sampled = sample && sample.points.length < sample.sampled_from;
  return el(
    'div',
    { class: 'card score', 'data-slice': model.slice },
    el('h3', {}, sliceName(model.slice)),
    el('p', { class: 'big' }, none ? '–' : number(silhouette, 3), ' ', el('small', {}, t('silhouette'))),
    bar(silhouette ?? 0),
    el('p', { class: 'said' }, said),
    sampled ? el('p', { class: 'said sampled' }, t('silhouette_sample', { n: count(sample.points.length), of: count(sample.sampled_from) })) : '',
    pairs([
      [t('inertia'), number(model.inertia, 5)],
      [t('inertia_row'), number(model.inertia / Math.max(1, model.rows), 3)],
      [t('rows'), count(model.rows)],
      [t('left_out'), count(model.rows_left_out)],
      [t('iterations'), count(model.iterations)],
    ]),
  );
}

/** Requested when scrolled into view, because the server computes it once per version. */
function report(name, model) {
  const of = `${name}@${model.slice}@${model.version}`;
  if (wanted?.of === of) {
    if (wanted.report) drawReport(wanted.report);
    return;
  }
  wanted?.sight?.disconnect();
  byId('k-said').textContent = t('k_waiting');
  byId('k-charts').replaceChildren();
  const asked = { of, report: null };
  wanted = asked;
  asked.sight = new IntersectionObserver(async (seen) => {
    if (!seen.some((one) => one.isIntersecting)) return;
    asked.sight.disconnect();
    byId('k-said').textContent = t('k_working');
    try {
      const report = await get(`/api/segments/${encodeURIComponent(name)}/k-report?model=${model.slice}`);
      if (wanted !== asked) return;
      asked.report = report;
      drawReport(report);
    } catch (error) {
      if (wanted === asked) byId('k-said').textContent = error.message;
    }
  }, { rootMargin: '200px' });
  asked.sight.observe(byId('k-card'));
}

function drawReport({ candidates, suggestion, k, rows, sampled_from: of }) {
  if (!suggestion) {
    byId('k-said').textContent = t('k_nothing');
    return;
  }
  const { recommended, agree } = suggestion;
  const said = t(`k_agree_${agree}`, { k: recommended });
  byId('k-said').textContent = `${said} ${recommended === k ? t('k_as_model', { k }) : t('k_unlike_model', { k })} ${t(rows < of ? 'k_sample' : 'k_rows', { n: count(rows), of: count(of) })}`;
  byId('k-charts').replaceChildren(
    curve(t('elbow'), candidates, (one) => one.inertia, suggestion.elbow, k),
    curve(t('silhouette'), candidates, (one) => one.silhouette ?? 0, suggestion.silhouette, k),
    curve(t('stability'), candidates, (one) => one.stability, suggestion.stability, k),
  );
}

function curve(title, candidates, value, pick, current) {
  // Uses the available width, so that the text keeps its size.
  const room = byId('k-charts').clientWidth;
  const [width, height] = [Math.max(220, room > 640 ? (room - 40) / 3 : room), 190];
  const x = d3.scalePoint(candidates.map((one) => one.k), [46, width - 14]);
  const y = d3.scaleLinear([Math.min(0, d3.min(candidates, value)), d3.max(candidates, value) || 1], [height - 30, 14]).nice(4);
  const ticks = ticksOf(y, false, 4).flatMap((tick) => [
    svg('line', { class: 'grid', x1: 40, x2: width, y1: y(tick), y2: y(tick) }),
    svg('text', { x: 34, y: y(tick) + 4, 'text-anchor': 'end' }, number(tick, 3)),
  ]);
  const points = candidates.flatMap((one) => [
    svg('circle', { class: one.k === pick ? 'badge pick' : 'badge step', cx: x(one.k), cy: y(value(one)), r: one.k === pick ? 7.5 : 4.5 }, svg('title', {}, `k ${one.k}: ${number(value(one))}`)),
    one.k === current && svg('circle', { class: 'ring current', cx: x(one.k), cy: y(value(one)), r: 11 }),
    svg('text', { class: one.k === pick ? 'name' : null, x: x(one.k), y: height - 8, 'text-anchor': 'middle' }, one.k === current ? `${one.k} ●` : String(one.k)),
  ]);
  const line = svg('path', { class: 'curve', d: d3.line((one) => x(one.k), (one) => y(value(one)))(candidates) });
  const label = `${title}: ${candidates.map((one) => `k ${one.k} ${number(value(one), 3)}`).join(', ')}; ${t('picks', { k: pick })}; ${t('model_has', { k: current })}`;
  return el('div', {}, el('h3', {}, title), el('p', { class: 'said' }, `${t('picks', { k: pick })} · ${t('model_has', { k: current })}`), svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label }, ...ticks, line, ...points));
}
