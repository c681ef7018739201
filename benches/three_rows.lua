-- Three rows a request, as an application would send them:
--   wrk -t1 -c1 -d10s --latency -s benches/three_rows.lua http://127.0.0.1:5000
wrk.method = "POST"
wrk.path = "/api/cluster_products_by_price_rating"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '[{"discounted_price":300,"rating":4.5},{"discounted_price":1200,"rating":3.0},{"discounted_price":700,"rating":4.0}]'
