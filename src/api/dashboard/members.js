// Members of a segmentation of entities: one looked up by its key, and those that moved. Keys are shown only on request.

import { get, post } from './api.js';
import { badge, byId, count, described, el, number, pretty, sliceName } from './page.js';
import { language, t } from './i18n.js';

/** Members of a cluster that are loaded at once. */
const PAGE = 20;

let shown = null;
/** The last look-up: {key, found: [{model, member}]} or {error}; and the list: {slice, rows, next} or {error}. */
let found = null;
let moved = null;
/** Answers to earlier questions than the last of each kind are dropped. */
const turns = { look: 0, list: 0 };

/** Shows the section for a segmentation of entities, and hides it for another. */
export function show(one) {
  const { models } = one ?? { models: [] };
  const entity = models.at(-1)?.entity ?? [];
  const of = (some) => some && [some.info.name, ...some.models.map((model) => model.version)].join();
  if (of(one) !== of(shown)) {
    turns.look += 1;
    turns.list += 1;
    [found, moved] = [null, null];
  }
  const other = byId('member-form').dataset.of !== `${of(one)},${language()}`;
  shown = one;
  byId('members').hidden = entity.length === 0;
  if (entity.length === 0) {
    for (const id of ['member-form', 'member-answer', 'moved-form', 'moved-list']) byId(id).replaceChildren();
    byId('member-form').dataset.of = '';
    return;
  }
  if (other) build(entity, models, `${of(one)},${language()}`);
  answer();
  list();
}

function build(entity, models, of) {
  byId('member-form').dataset.of = of;
  const field = (column) => el('label', {}, pretty(column), el('input', { name: column, autocomplete: 'off', spellcheck: 'false' }));
  byId('member-form').replaceChildren(
    el('div', { class: 'fields' }, entity.map(field)),
    el('div', {}, el('button', { type: 'submit', class: 'primary' }, t('look_up'))),
  );
  byId('member-form').onsubmit = (event) => {
    event.preventDefault();
    const typed = [...event.target.querySelectorAll('input')].map((input) => [input.name, input.value]);
    lookUp(Object.fromEntries(typed));
  };
  // The first model has none before it.
  const later = models.toReversed();
  const select = el('select', { name: 'slice' }, later.map((model) => el('option', { value: model.slice }, sliceName(model.slice))));
  byId('moved-form').replaceChildren(
    el('label', {}, t('trained_on'), ' ', select),
    el('button', { type: 'submit', class: 'plain' }, t('show_moved')),
  );
  byId('moved-form').onsubmit = (event) => {
    event.preventDefault();
    moved = null;
    more(Number(select.value));
  };
}

const path = (rest) => `/api/segments/${encodeURIComponent(shown.info.name)}/${rest}lang=${language()}`;

const said = (error) => (error.status === 403 ? t('members_denied') : error.message);

/** By POST, so that the key is in no address. */
async function lookUp(key) {
  const mine = ++turns.look;
  try {
    const ask = async (model) => ({ model, member: (await post(path(`members?model=${model.slice}&`), [key]))[0] });
    const answers = await Promise.all(shown.models.map(ask));
    if (mine === turns.look) found = { key: Object.values(key).join(', '), answers };
  } catch (error) {
    if (mine === turns.look) found = { error: said(error) };
  }
  answer();
}

function answer() {
  const box = byId('member-answer');
  if (!found) {
    box.replaceChildren(el('p', { class: 'muted' }, t('look_up_first')));
    return;
  }
  if (found.error) {
    box.replaceChildren(el('p', { class: 'wrong', role: 'alert' }, found.error));
    return;
  }
  const last = found.answers.at(-1).member;
  const lines = found.answers.map(({ model, member }) => [
    sliceName(model.slice),
    member ? segment(model, member.cluster) : t('not_there'),
    member ? number(member.distance, 3) : '–',
  ]);
  const features = last ? Object.entries(last.features).map(([feature, value]) => [pretty(feature), number(value)]) : [];
  box.replaceChildren(
    el('h3', {}, found.key || t('empty_key')),
    table([t('slice'), t('segment'), t('distance_short')], lines),
    features.length > 0 ? el('dl', { class: 'pairs' }, features.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)])) : '',
  );
}

const segment = (model, cluster) => el('span', { class: 'in-segment' }, badge(cluster), el('span', {}, model.clusters[cluster] ? described(model.clusters[cluster]) : String(cluster)));

function table(head, lines) {
  const right = (i) => (i === head.length - 1 ? 'right' : null);
  return el(
    'div',
    { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': t('members') },
    el('table', {}, el('thead', {}, el('tr', {}, head.map((text, i) => el('th', { scope: 'col', class: right(i) }, text)))),
      el('tbody', {}, lines.map((line) => el('tr', {}, line.map((cell, i) => el('td', { class: right(i) }, cell)))))),
  );
}

/** Loads the first or the next members that moved, of each cluster. */
async function more(slice) {
  const mine = ++turns.list;
  const model = shown.models.find((one) => one.slice === slice);
  const before = moved ?? { slice, rows: [], next: new Map(model.clusters.map((cluster) => [cluster.cluster, ''])) };
  try {
    const pages = await Promise.all([...before.next].map(async ([cluster, after]) => {
      const from = after === '' ? '' : `&after=${encodeURIComponent(after)}`;
      return [cluster, await get(path(`clusters/${cluster}/members?model=${slice}&moved=true&limit=${PAGE}${from}&`))];
    }));
    if (mine !== turns.list) return;
    const next = new Map(pages.filter(([, page]) => page.next !== null && page.next !== undefined).map(([cluster, page]) => [cluster, page.next]));
    moved = { slice, rows: [...before.rows, ...pages.flatMap(([, page]) => page.members)], next };
  } catch (error) {
    if (mine !== turns.list) return;
    moved = { error: said(error) };
  }
  list();
}

function list() {
  const box = byId('moved-list');
  if (!moved) {
    box.replaceChildren();
    return;
  }
  if (moved.error) {
    box.replaceChildren(el('p', { class: 'wrong', role: 'alert' }, moved.error));
    return;
  }
  if (moved.rows.length === 0) {
    box.replaceChildren(el('p', { class: 'muted' }, t('nobody_moved')));
    return;
  }
  const model = shown.models.find((one) => one.slice === moved.slice);
  const lines = moved.rows.map((row) => [
    ...model.entity.map((column) => String(row.key[column])),
    segment(model, row.previous), segment(model, row.cluster), number(row.distance, 3),
  ]);
  const further = moved.next.size > 0 ? el('button', { type: 'button', class: 'plain', onclick: () => more(moved.slice) }, t('more')) : '';
  box.replaceChildren(
    table([...model.entity.map(pretty), t('from'), t('to'), t('distance_short')], lines),
    el('p', { class: 'said' }, t('moved_shown', { n: count(moved.rows.length), of: sliceName(moved.slice) })),
    further,
  );
}
