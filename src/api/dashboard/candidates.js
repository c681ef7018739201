// Candidates: models that wait for an operator's decision, beside those that serve.

import { get } from './api.js';
import { badge, byId, count, described, el, moment, number, sliceName } from './page.js';
import { t } from './i18n.js';

let wanted = '';

export async function show({ info }) {
  const held = info.slices.filter((slice) => slice.candidate !== undefined);
  byId('candidates-card').hidden = held.length === 0;
  const of = held.map((slice) => `${info.name}@${slice.slice}@${slice.candidate}@${slice.version}`).join();
  wanted = of;
  if (!of) return;
  try {
    const all = await get(`/api/segments/${encodeURIComponent(info.name)}/candidates`);
    if (wanted === of) byId('candidates').replaceChildren(...all.map((one) => pair(info.name, one)));
  } catch (error) {
    if (wanted === of) byId('candidates').replaceChildren(el('p', { class: 'said' }, error.message));
  }
}

function pair(name, { slice, since, reason, candidate, champion }) {
  const both = [champion, candidate].filter(Boolean);
  const row = (title, of) => el('tr', {}, el('th', { scope: 'row' }, title), both.map((model) => el('td', {}, of(model))));
  const titles = champion ? [t('candidate_serves'), t('candidate_waits')] : [t('candidate_waits')];
  const names = (model) => model.clusters.map((cluster) => el('div', {}, badge(cluster.cluster), ' ', described(cluster), ` (${count(cluster.size)})`));
  const decide = (word) => el('code', {}, `tercile models ${word} ${name}@${slice}`);
  return el('div', {},
    el('p', { class: 'said' }, `${sliceName(slice)}: ${t('candidate_since', { version: candidate.version, time: moment(since) })} ${reason}.`),
    el('table', {},
      el('thead', {}, el('tr', {}, el('td', {}), titles.map((title) => el('th', { scope: 'col' }, title)))),
      el('tbody', {},
        row(t('version'), (model) => String(model.version)),
        row(t('rows'), (model) => count(model.rows)),
        row(t('silhouette'), (model) => (model.silhouette === null ? '' : number(model.silhouette, 3))),
        row(t('inertia_row'), (model) => number(model.inertia / model.rows, 3)),
        row(t('segment'), names))),
    el('p', { class: 'said' }, t('candidate_decide'), ' ', decide('promote'), ' ', decide('reject')));
}
