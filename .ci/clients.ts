// Drives a server with the generated TypeScript client: node clients.js OPEN KEYED KEY. Prints how many calls passed.

import { deepStrictEqual as same, ok } from 'node:assert';
import { createClient } from './tercile-client/client';
import * as tercile from './tercile-client';
import type { Model, PointSample, Prediction, PriceRatingPrediction, Problem, Status } from './tercile-client';

const [open, keyed, key] = process.argv.slice(2) as [string, string, string];
const client = createClient({ baseUrl: open });
let calls = 0;

interface Answered<T, E> {
  data?: T;
  error?: E;
  response?: Response;
}

function response(answer: Answered<unknown, unknown>, status: number): Response {
  const found = answer.response;
  ok(found, 'there was no answer');
  same(found.status, status, JSON.stringify(answer.error));
  ok(found.headers.get('x-request-id'));
  calls += 1;
  return found;
}

/** What a call gave. */
async function got<T, E>(call: Promise<Answered<T, E>>, status = 200): Promise<T> {
  const answer = await call;
  response(answer, status);
  ok(answer.data !== undefined);
  return answer.data;
}

/** What was wrong with a call: each error is a problem, and the compiler knows. */
async function wrong(call: Promise<Answered<unknown, Problem>>, status: number): Promise<[Problem, Headers]> {
  const answer = await call;
  const { headers } = response(answer, status);
  same(headers.get('content-type'), 'application/problem+json');
  ok(answer.error);
  same(answer.error.status, status);
  return [answer.error, headers];
}

// Status.
same((await got(tercile.getGreeting({ client }))).message, 'Big Data API is running.');
same((await got(tercile.getLiveness({ client }))).status, 'live');
same((await got(tercile.getReadiness({ client }))).status, 'ready');
const status: Status = await got(tercile.getStatus({ client }));
same([status.records, status.ready], [1465, true]);
ok((await got(tercile.getMetrics({ client }))).includes('tercile_ready 1'));
const abort = new AbortController();
const events = await tercile.watchStatus({ client, signal: abort.signal, sseMaxRetryAttempts: 1 });
for await (const event of events.stream) {
  // The client returns the data of an event.
  same((event as unknown as Status).records, 1465);
  calls += 1;
  break;
}
abort.abort();

// Lists.
const names = (await got(tercile.listSegmentations({ client }))).map((one) => one.name);
same(names, ['price_rating', 'rating_count', 'discount']);
for (const name of names) {
  const path = { name };
  same((await got(tercile.getSegmentation({ client, path }))).slices.map((one) => one.version), [1, 2, 3]);
  same((await got(tercile.listModels({ client, path }))).map((one) => one.slice), [1, 2, 3]);
}
const path = { name: 'price_rating', slice: 3 };
const first = await tercile.getModel({ client, path });
const etag = response(first, 200).headers.get('etag');
const model: Model | undefined = first.data;
ok(model && etag && model.receipt.cut && model.silhouette !== null);
same(model.clusters.reduce((sum, cluster) => sum + cluster.size, 0), model.rows);
const known = await tercile.getModel({ client, path, headers: { 'If-None-Match': etag } });
same(response(known, 304).headers.get('etag'), etag);
const points: PointSample = await got(tercile.getPoints({ client, path: { name: 'discount' }, query: { model: 1 } }));
same([points.points.length, points.slice], [489, 1]);
same((await got(tercile.getKReport({ client, path: { name: 'discount' } }))).suggestion?.recommended, 3);
same(await got(tercile.listUnreadable({ client, query: { limit: 5 } })), []);

// Predictions, in both languages.
for (const [lang, price, rating, discount] of [
  ['en', 'Low Price, High Rating', 'High Rating, Low Reviews', 'High Discount'],
  ['id', 'Harga Rendah, Rating Tinggi', 'Rating Tinggi, Sedikit Ulasan', 'Diskon Tinggi'],
] as const) {
  const query = { lang };
  const prices: PriceRatingPrediction[] = await got(
    tercile.clusterByPriceRating({ client, query, body: [{ discounted_price: 300, rating: 4.5 }] }),
  );
  same([prices[0]?.description, prices[0]?.features.discounted_price], [price, 300]);
  const counts = await got(tercile.clusterByRatingCount({ client, query, body: [{ rating: 4.8, rating_count: 20000 }] }));
  same(counts[0]?.description, rating);
  const body = [{ discount_percentage: 64 }];
  same((await got(tercile.clusterByDiscount({ client, query, body })))[0]?.description, discount);
  for (const model of [1, 2, 3]) {
    same((await got(tercile.clusterByDiscount({ client, query: { lang, model }, body })))[0]?.model, model);
  }
}
const own = await got(
  tercile.clusterByPriceRating({
    client,
    query: { fit: 'request' },
    body: [1, 50, 1000].map((discounted_price) => ({ discounted_price, rating: 4 })),
  }),
);
same(own.map((one) => one.cluster), [0, 1, 2]);
const row = { product_id: 'B0001', discounted_price: 300, rating: 4.5 };
const explained: Prediction[] = await got(
  tercile.predict({ client, path: { name: 'price_rating' }, query: { explain: true }, body: [row] }),
);
same(explained[0]?.other, { product_id: 'B0001' });
same(explained[0]?.explanation?.distances.length, 3);
const earlier = await got(tercile.predict({ client, path: { name: 'price_rating' }, query: { as_of: 1 }, body: [row] }));
same([earlier[0]?.model, earlier[0]?.version], [1, 1]);

// Problems as objects.
const nothing = null as unknown as number;
const rows = [{ discounted_price: 1, rating: 1 }, { discounted_price: 1, rating: nothing }];
let [problem] = await wrong(tercile.clusterByPriceRating({ client, body: rows }), 422);
same([problem.index, problem.field], [1, 'rating']);
[problem] = await wrong(tercile.getPoints({ client, path: { name: 'discount' }, query: { model: 4 } }), 422);
same(problem.field, 'model');
[problem] = await wrong(tercile.getModel({ client, path: { name: 'shoes', slice: 3 } }), 404);
same([problem.title, problem.field], ['Not Found', 'name']);

// SQL.
const sql = 'SELECT count(*) AS n FROM products WHERE rating >= $least';
same(await got(tercile.runSql({ client, body: { sql, params: { least: 4.5 } } })), [{ n: 90 }]);
[problem] = await wrong(tercile.runSql({ client, body: { sql: 'SELECT ratin FROM products' } }), 422);
same([problem.line, problem.column], [1, 8]);

// A training, observed to its end.
const started = await tercile.startTraining({ client });
const location = response(started, 202).headers.get('location');
let job = started.data;
for (let i = 0; job?.state === 'running' && i < 300; i += 1) {
  same(location, `/api/train/${job.job}`);
  await new Promise((done) => setTimeout(done, 100));
  job = await got(tercile.getTraining({ client, path: { job: job.job } }));
}
same([job?.state, job?.unchanged], ['done', 9]);

// Keys, scopes and rate limits.
const stranger = createClient({ baseUrl: keyed, auth: 'wrong' });
let [, headers] = await wrong(tercile.listSegmentations({ client: stranger }), 401);
ok(headers.get('www-authenticate')?.startsWith('Bearer'));
const shop = createClient({ baseUrl: keyed, auth: key });
await new Promise((done) => setTimeout(done, 1000));
same((await got(tercile.listSegmentations({ client: shop }))).length, 3);
await wrong(tercile.startTraining({ client: shop }), 403);
await wrong(tercile.clusterByDiscount({ client: shop, body: [{ discount_percentage: 64 }] }), 503);
let slower = await tercile.listSegmentations({ client: shop });
for (let i = 0; slower.response?.status !== 429 && i < 100; i += 1) {
  slower = await tercile.listSegmentations({ client: shop });
}
[problem, headers] = await wrong(Promise.resolve(slower), 429);
ok(Number(headers.get('retry-after')) >= 1);

console.log(calls);
