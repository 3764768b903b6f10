-- wrk: the lines of a file are the bodies, in turn; the result is one line of JSON. Answers above 399 are counted by wrk.
local requests, n = {}, 0

function init(args)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  for line in io.lines(args[1]) do requests[#requests + 1] = wrk.format(nil, nil, nil, line) end
end

function request()
  n = n % #requests + 1
  return requests[n]
end

function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format('\n{"n": %d, "seconds": %.6f, "p50": %.4f, "p99": %.4f, "worst": %.4f, "bad": %d}\n', summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3, e.status + e.connect + e.read + e.write + e.timeout))
end
