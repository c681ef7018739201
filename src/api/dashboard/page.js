// Helpers shared by all modules: elements whose text is never parsed as markup, localised numbers and times.

import { language, t } from './i18n.js';

const SVG = 'http://www.w3.org/2000/svg';

export const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Creates an element; string children become text. */
export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** Creates an SVG element. */
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** Badge with a cluster's number in its colour. */
export const badge = (cluster) => el('span', { class: `number c${cluster % 8}`, 'aria-hidden': 'true' }, String(cluster));

/** Bar of a share from 0 to 1. */
export function bar(share, kind = '') {
  const inner = el('i');
  inner.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return el('div', { class: `bar ${kind}`, 'aria-hidden': 'true' }, inner);
}

export const pairs = (list) => el('dl', { class: 'pairs' }, list.flatMap(([term, value]) => [el('dt', {}, term), el('dd', {}, value)]));

const formats = new Map();

function format(kind, options) {
  const key = language() + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new kind(language() === 'id' ? 'id-ID' : 'en-GB', options));
  return formats.get(key);
}

export const count = (value) => format(Intl.NumberFormat, {}).format(value);

/** Formats a number with this many significant digits. */
export function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e12)) return value.toExponential(2);
  if (size >= 10 ** digits) return format(Intl.NumberFormat, { maximumFractionDigits: 0 }).format(value);
  return format(Intl.NumberFormat, { maximumSignificantDigits: digits }).format(value);
}

export const compact = (value) => format(Intl.NumberFormat, { notation: 'compact', maximumSignificantDigits: 3 }).format(value);
/** Formats a share. One that is neither nothing nor all is not rounded to either. */
export function percent(share, digits = 1) {
  const text = (value) => format(Intl.NumberFormat, { style: 'percent', maximumFractionDigits: digits }).format(value);
  const least = 10 ** -(digits + 2);
  if (share > 0 && share < least) return `< ${text(least)}`;
  if (share < 1 && share > 1 - least) return `> ${text(1 - least)}`;
  return text(share);
}
// Record times may exceed the range of Date (year 275,760) and are then shown as in the API.
export const moment = (time) => {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? String(time) : format(Intl.DateTimeFormat, { dateStyle: 'medium', timeStyle: 'medium' }).format(date);
};
export const clock = (time) => format(Intl.DateTimeFormat, { timeStyle: 'medium' }).format(new Date(time));

export function bytes(size) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  for (; size >= 1000 && unit < units.length - 1; unit += 1) size /= 1000;
  return `${number(size, 3)} ${units[unit]}`;
}

/** Time elapsed by the server's clock; a future time, due to a wrong clock, is labelled as such. */
export function ago(time, now) {
  const seconds = Math.round((new Date(now) - new Date(time)) / 1000);
  if (seconds < -5) return t('in_future');
  if (seconds < 5) return t('just_now');
  const relative = format(Intl.RelativeTimeFormat, { numeric: 'always', style: 'short' });
  for (const [unit, length] of [['day', 86400], ['hour', 3600], ['minute', 60]]) {
    if (seconds >= length) return relative.format(-Math.floor(seconds / length), unit);
  }
  return relative.format(-seconds, 'second');
}

/** Readable form of a name. */
export const pretty = (name) => name.replaceAll('_', ' ');

/** Description of a cluster in the page's language. */
export const described = (cluster) => cluster.descriptions[language()] ?? cluster.description;

export const sliceName = (slice) => t(`slice_${slice}`);

export const empty = (title, text) => el('div', { class: 'empty' }, el('strong', {}, title), text);

/** Label positions beside badges ([{x, y, name}], in pixels): right, left, above or below, at the first free spot. Where there is none,
 * the nearest free place within the frame, joined to its badge by a line; without one the place is added to `rest`. `others` are positions
 * ([x, y]) that labels must not cover. `owns(place, x, y)` says whether a position may be covered by the label of a place. */
export function labels(list, { left, right, top, bottom }, others = [], owns = () => true, rest = []) {
  const taken = [...list.map(({ x, y }) => [x - 12, y - 12, x + 12, y + 12]), ...others.map(([x, y]) => [x - 6, y - 6, x + 6, y + 6])];
  return list.flatMap((place) => {
    const { x, y, name } = place;
    const wide = name.length * 6.7 + 4;
    const spots = [[x + 15, y + 4, 'start'], [x - 15, y + 4, 'end'], [x, y - 17, 'middle'], [x, y + 25, 'middle'], [x + 15, y - 14, 'start'], [x - 15, y - 14, 'end'], [x + 15, y + 24, 'start'], [x - 15, y + 24, 'end'], [x + 12, y - 17, 'end'], [x - 12, y - 17, 'start'], [x + 12, y + 25, 'end'], [x - 12, y + 25, 'start'], [x, y - 34, 'middle'], [x, y + 42, 'middle'], [x + 12, y - 34, 'end'], [x + 12, y + 42, 'end']]
      .map(([at, base, anchor]) => {
        const from = anchor === 'start' ? at : anchor === 'end' ? at - wide : at - wide / 2;
        return { x: at, y: base, anchor, box: [from, base - 11, from + wide, base + 3] };
      });
    const free = ({ box: [a, b, c, d] }) => a >= left && c <= right && b >= top && d <= bottom && !taken.some(([e, f, g, h]) => a < g && c > e && b < h && d > f)
      && [a, (a + c) / 2, c].every((px) => owns(place, px, b) && owns(place, px, d));
    const spot = spots.find(free) ?? elsewhere(x, y, wide, { left, right, top, bottom }, free);
    if (!spot) {
      rest.push(place);
      return [];
    }
    taken.push(spot.box);
    const [a, b, c, d] = spot.box;
    // From the badge to the nearest point of the label.
    const line = spot.far && svg('line', { class: 'leader', x1: x, y1: y, x2: Math.max(a, Math.min(c, x)), y2: Math.max(b, Math.min(d, y)) });
    return [line, svg('text', { class: 'name halo', x: spot.x, y: spot.y, 'text-anchor': spot.anchor }, name)].filter(Boolean);
  });
}

/** The free place for a label that is nearest to its badge. */
function elsewhere(x, y, wide, { left, right, top, bottom }, free) {
  const places = [];
  for (let base = top + 12; base <= bottom - 4; base += 7) {
    for (let from = left + 2; from + wide <= right; from += 9) {
      const distance = Math.hypot(x - Math.max(from, Math.min(from + wide, x)), y - base);
      places.push({ x: from, y: base, anchor: 'start', far: true, distance, box: [from, base - 11, from + wide, base + 3] });
    }
  }
  return places.sort((a, b) => a.distance - b.distance).find(free);
}

/** Shows a tooltip beside the pointer. */
export function tip(x, y, ...lines) {
  const box = byId('tip');
  box.replaceChildren(...lines.map((line, i) => el(i === 0 ? 'strong' : 'div', {}, line)));
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  const left = x + 16 + width > innerWidth ? x - width - 16 : x + 16;
  box.style.transform = `translate(${Math.max(8, left)}px, ${Math.max(8, Math.min(y - height / 2, innerHeight - height - 8))}px)`;
}

export function hideTip() {
  byId('tip').hidden = true;
}
