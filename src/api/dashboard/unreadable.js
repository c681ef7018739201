// List of the latest messages that could not be parsed as records.

import { get } from './api.js';
import { byId, bytes, count, el, empty, moment } from './page.js';
import { t } from './i18n.js';

let list = null;
let counted = null;

/** Reloads the list when the count changed. */
export async function hear(status) {
  if (counted === status.unreadable) return;
  counted = status.unreadable;
  try {
    list = counted > 0 ? await get('/api/unreadable?limit=50') : [];
  } catch (error) {
    counted = null;
    byId('unreadable-list').replaceChildren(el('p', { class: 'wrong' }, error.message));
    return;
  }
  show();
}

export function show() {
  if (!list) return;
  byId('unreadable-lead').textContent = t('unreadable_lead');
  if (list.length === 0) {
    byId('unreadable-list').replaceChildren(empty(t('all_readable'), t('all_readable_more')));
    return;
  }
  const lead = list.length < counted ? t('last_of', { n: count(list.length), all: count(counted) }) : '';
  byId('unreadable-lead').textContent = `${t('unreadable_lead')} ${lead}`;
  const head = ['when', 'where', 'why', 'began'].map((name) => el('th', { scope: 'col' }, t(name)));
  const rows = list.map((one) => el(
    'tr',
    {},
    el('td', { class: 'when' }, one.timestamp ? moment(one.timestamp) : '–'),
    el('td', {}, t('place', { partition: one.partition, offset: count(one.offset) })),
    el('td', {}, one.reason),
    el('td', { class: 'mono' }, one.bytes === 0 ? t('empty_message') : `${one.start}${one.bytes > one.start.length ? ` … (${bytes(one.bytes)})` : ''}`),
  ));
  byId('unreadable-list').replaceChildren(el(
    'div',
    { class: 'scroll', tabindex: 0, role: 'region', 'aria-labelledby': 'unreadable-title' },
    el('table', {}, el('thead', {}, el('tr', {}, head)), el('tbody', {}, rows)),
  ));
}
