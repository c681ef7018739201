-- Three raw records a request, as they are on the topic, for wrk.
wrk.method = "POST"
wrk.path = "/api/segments/price_rating/score"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [=[[
{"product_id":"B1","product_name":"a cable","discounted_price":"₹399","actual_price":"₹1,099","discount_percentage":"64%","rating":"4.2","rating_count":"24,269"},
{"product_id":"B2","product_name":"a television","discounted_price":"₹32,999","actual_price":"₹45,999","discount_percentage":"28%","rating":"4.3","rating_count":"7,298"},
{"product_id":"B3","product_name":"a lamp","discounted_price":"₹199","actual_price":"₹999","discount_percentage":"80%","rating":"|","rating_count":"992"}
]]=]
