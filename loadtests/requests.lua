-- The requests that wrk sends in scripts/bench. Settings come by the environment:
--   BENCH_METHOD     PUT or GET
--   BENCH_ADDRESSES  "host:port host:port ..."; the threads spread over them
--   BENCH_PREFIX     the first part of every path
--   BENCH_SIZE       PUT: bytes of a body, at least 64
--   BENCH_RUN        PUT: a number; paths and contents of a run are unlike any other run's
--   BENCH_FILES      GET: reads spread over the paths PREFIX0 to PREFIX(FILES - 1)
--   BENCH_KEY        the bearer key; empty for none
-- Every PUT has a path and contents of its own, so that neither deduplication nor overwriting makes
-- a write cheaper than it is. Prints one line of JSON at the end.

local thread_count = 0

function setup(thread)
   local addresses = {}
   for address in os.getenv("BENCH_ADDRESSES"):gmatch("%S+") do addresses[#addresses + 1] = address end
   local host, port = addresses[thread_count % #addresses + 1]:match("([^:]+):(%d+)")
   thread.addr = wrk.lookup(host, port)[1]
   thread:set("thread_number", thread_count)
   thread_count = thread_count + 1
end

function init(arguments)
   method, prefix = os.getenv("BENCH_METHOD"), os.getenv("BENCH_PREFIX")
   size, run = tonumber(os.getenv("BENCH_SIZE")), tonumber(os.getenv("BENCH_RUN"))
   files = tonumber(os.getenv("BENCH_FILES"))
   headers = {}
   if os.getenv("BENCH_KEY") ~= "" then headers["Authorization"] = "Bearer " .. os.getenv("BENCH_KEY") end
   counter = 0
   math.randomseed(run * 1000 + thread_number)
   if method == "PUT" then
      local bytes = {}
      for position = 1, size - 32 do bytes[position] = string.char(math.random(0, 255)) end
      base = table.concat(bytes)
      request = put
   else
      request = get
   end
end

function put()
   counter = counter + 1
   -- The stamp stands at both ends: LuaJIT hashes only parts of a string, among them the ends, and
   -- strings that differ in the middle alone would share one bucket of its table of strings.
   local stamp = string.format("%08x%02x%06x", counter, thread_number, run)
   local path = prefix .. run .. "/" .. thread_number .. "/" .. counter
   return wrk.format("PUT", path, headers, stamp .. base .. stamp)
end

function get()
   return wrk.format("GET", prefix .. math.random(0, files - 1), headers)
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      '\n{"requests":%d,"seconds":%f,"bytes":%d,"failed":%d,"p50_ms":%f,"p99_ms":%f}\n',
      summary.requests, summary.duration / 1e6, summary.bytes,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
