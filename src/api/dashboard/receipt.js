// Receipt of each model: its training input and how to verify it.

import { byId, count, el, moment, pairs, pretty, sliceName } from './page.js';
import { scalingWords } from './scaling.js';
import { t } from './i18n.js';

export function show({ models }) {
  const open = new Set([...byId('receipts').querySelectorAll('details[open]')].map((one) => one.dataset.slice));
  byId('receipts').replaceChildren(...models.map((model) => {
    const { receipt } = model;
    const offsets = Object.entries(receipt.next_offsets).map(([partition, next]) => `${partition}: ${count(next)}`).join(', ');
    const cut = receipt.cut ? t('place', { partition: receipt.cut.partition, offset: count(receipt.cut.offset) }) : '–';
    const before = receipt.predecessor;
    const lines = [
      [t('version'), String(model.version)],
      [t('trained_at'), moment(model.trained_at)],
      [t('topic'), receipt.topic],
      [t('stream_then'), count(receipt.n)],
      [t('next_offsets'), offsets],
      [t('last_record'), cut],
      [t('starts_seed'), `${count(receipt.starts)} · ${model.seed}`],
      [t('predecessor'), before ? t('version_of', { version: before.version, slice: sliceName(before.slice) }) : t('none')],
      ...(model.scaling ? [[t('scaled'), scalingWords(model, pretty)]] : []),
      [t('rows_hash'), el('span', { class: 'mono' }, receipt.rows_hash)],
      [t('sql_hash'), el('span', { class: 'mono' }, receipt.sql_hash)],
      ['tercile', t('made_by', { version: receipt.tercile, method: receipt.method })],
      [t('check'), el('code', {}, `tercile verify ${model.segmentation}@${model.slice}@${model.version}`)],
    ];
    const title = t('receipt', { slice: sliceName(model.slice), version: model.version });
    return el('details', { 'data-slice': model.slice, open: open.has(String(model.slice)) }, el('summary', {}, title), el('div', { class: 'inside' }, pairs(lines)));
  }));
}
