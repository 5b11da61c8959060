-- wrk as the client of an explicit proxy: each request has a whole URL (RFC 9112 section 3.2.2).
-- At the end it prints what it counted, as one line that a program can read.
local request_
function init(arguments)
  local url = assert(os.getenv("BENCH_URL"))
  wrk.headers["Host"] = url:match("^http://([^/]+)")
  request_ = wrk.format("GET", url)
end
function request() return request_ end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("counted %d %d %d %d %d\n", summary.requests, summary.bytes, e.status,
    e.connect + e.write + e.timeout, e.read))
end
