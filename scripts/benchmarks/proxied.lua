-- wrk as the client of an explicit proxy: the request's target is a whole URL (RFC 9112 3.2.2).
local request_
function init(arguments)
  local url = assert(os.getenv("BENCH_URL"))
  wrk.headers["Host"] = url:match("^http://([^/]+)")
  request_ = wrk.format("GET", url)
end
function request() return request_ end
