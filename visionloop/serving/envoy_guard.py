"""What Envoy looks at in a request before a lane sees it, and how a client's mistake is told from a lane's fault.

Triton 2.51 answers a body that it cannot read with 500 or INTERNAL, as it does its own faults, and a document that is
nested deeply enough kills it. Both would let one client take a lane away from all others.
"""

from typing import Any

Json = dict[str, Any]

DEEPEST = 64
"""Brackets within brackets; an inference needs 8. Triton dies of some hundred thousand."""
SAFE_BYTES = 64 << 10
"""A body that is no longer is not looked at: it cannot be nested deeply enough."""
LARGEST_GRPC_HEAD = 8 << 10
"""Names and shapes of a gRPC request, in bytes. Triton repeats them in its errors, and those are headers."""
LONGEST_MESSAGE = 1000
"""Of a lane's gRPC error, in bytes."""
LARGEST_ANSWER_HEAD_KIB = 256
"""What a lane's error may have before it is cut."""
CLIENT_MISTAKES = (
    "failed to parse the request JSON buffer",
    "Unable to parse '",
    "Unable to set '",
    "failed to get request params",
)
"""How Triton's HTTP errors begin that are the request's fault, yet come with 500; a backend's begin otherwise."""
AWAY = ("Stub process '", "has no available versions")
"""... and what they say where the model's process died (500), or is being replaced (404): a matter of seconds."""
NOT_READ = "Unable to parse request"
"""What Triton's gRPC server says of bytes that are no message, with INTERNAL."""

ON_REQUEST = (
    f"""
local DEEPEST, SAFE_BYTES, LARGEST_HEAD = {DEEPEST}, {SAFE_BYTES}, {LARGEST_GRPC_HEAD}
"""
    + r"""
local WINDOW, FRAME = 1048576, 5

-- Is the JSON head, the first `size` bytes, nested too deeply? Brackets in texts do not count.
local function is_too_deep(body, size)
  local depth, in_text, skip = 0, false, false
  for start = 0, size - 1, WINDOW do
    local part = body:getBytes(start, math.min(WINDOW, size - start))
    for at = 1, #part do
      local c = part:byte(at)
      if skip then skip = false
      elseif in_text then
        if c == 92 then skip = true elseif c == 34 then in_text = false end
      elseif c == 34 then in_text = true
      elseif c == 91 or c == 123 then
        depth = depth + 1
        if depth > DEEPEST then return true end
      elseif c == 93 or c == 125 then depth = depth - 1 end
    end
  end
  return false
end

local function refuse_http(request, status, text)
  request:respond({[":status"] = status, ["content-type"] = "application/json"}, '{"error":"' .. text .. '"}')
end

local function check_http(request)
  local encoding = request:headers():get("content-encoding")
  if encoding and encoding ~= "identity" then
    return refuse_http(request, "415", "expected a body that is gzip or not compressed, found another content-encoding")
  end
  local head = request:headers():get("inference-header-content-length") or ""
  local body = request:body()
  if not body or body:length() <= SAFE_BYTES then return end
  local size = head:match("^%d+$") and math.min(tonumber(head), body:length()) or body:length()
  if size > SAFE_BYTES and is_too_deep(body, size) then
    refuse_http(request, "400", "expected JSON of at most " .. DEEPEST .. " nested brackets, found more")
  end
end

-- The number at the place `at` of a text, and the place behind it.
local function varint(text, at)
  local value, factor = 0, 1
  for place = at, at + 9 do
    local c = text:byte(place)
    if not c then return nil end
    value, factor = value + (c % 128) * factor, factor * 128
    if c < 128 then return value, place + 1 end
  end
end

-- Bytes of a message's fields between `at` and `stop`, but not of the tensors' own values: field 7 of a request,
-- field 5 of its inputs. Stops counting above LARGEST_HEAD, and at what is no message: Triton says that.
local function head_size(body, at, stop, values, found)
  while at < stop and found <= LARGEST_HEAD do
    local start = body:getBytes(at, math.min(20, stop - at))
    local tag, next_at = varint(start, 1)
    if not tag then return found end
    local kind, field, size = tag % 8, math.floor(tag / 8), 0
    if kind == 0 then
      local _, behind = varint(start, next_at)
      if not behind then return found end
      next_at = behind
    elseif kind == 1 then size = 8
    elseif kind == 5 then size = 4
    elseif kind == 2 then
      size, next_at = varint(start, next_at)
      if not size then return found end
    elseif kind > 5 then return found end
    at, found = at + next_at - 1, found + next_at - 1
    if kind == 2 and field == 5 and values == 7 and size > 512 then
      found = head_size(body, at, math.min(at + size, stop), 5, found)
    elseif kind ~= 2 or field ~= values then found = found + size end
    at = at + size
  end
  return found
end

local function refuse_grpc(request, status, text)
  local head = {[":status"] = "200", ["grpc-status"] = status, ["grpc-accept-encoding"] = "identity"}
  request:respond(head, text)
end

-- gRPC's own headers are between neighbours: a lane hangs up, or dies, where one is not as it should be. So is a
-- deadline: a client keeps its own by going away, and a lane that kept it instead would be charged with a failure.
local function clean_grpc(headers)
  local own = {}
  for key, _ in pairs(headers) do
    if key:sub(1, 5) == "grpc-" or key:sub(-4) == "-bin" then own[#own + 1] = key end
  end
  for _, key in ipairs(own) do headers:remove(key) end
  headers:replace("te", "trailers")
end

local function check_grpc(request)
  local method = request:headers():get(":method")
  if method ~= "POST" then return refuse_grpc(request, "12", "expected the method POST, found another") end
  clean_grpc(request:headers())
  local body = request:body()
  local came = body and body:length() - FRAME or -1
  if came < 0 then return refuse_grpc(request, "3", "expected one message, found no whole one") end
  local a, b, c, d, e = body:getBytes(0, FRAME):byte(1, FRAME)
  local announced = ((b * 256 + c) * 256 + d) * 256 + e
  if a ~= 0 then
    return refuse_grpc(request, "12", "expected a message that is not compressed, found a compressed one")
  elseif announced ~= came then
    return refuse_grpc(request, "3", "expected one message of " .. announced .. " bytes, found " .. came .. " bytes")
  elseif head_size(body, FRAME, came + FRAME, 7, 0) > LARGEST_HEAD then
    return refuse_grpc(request, "3",
      "expected names and shapes of at most " .. LARGEST_HEAD .. " bytes together, found more")
  end
  local found = request:streamInfo():dynamicMetadata():get("envoy.filters.http.grpc_field_extraction")
  local name = found and (found["model_name"] or found["name"])
  if type(name) == "table" then name = name[1] end
  if not name then return end
  if name:find("[^%w%._%-]") then
    return refuse_grpc(request, "3", "expected a model's name, found bytes that are none")
  end
  request:headers():replace("x-model", name)
  request:clearRouteCache()
end

-- By the path, which decides what reads the body; a content-type is the client's word only.
function envoy_on_request(request)
  local path = request:headers():get(":path")
  if path:sub(1, 4) == "/v2/" then check_http(request)
  elseif path:find("/inference.", 1, true) == 1 or path:find("/grpc.", 1, true) == 1 then check_grpc(request) end
end
"""
)
"""gRPC has the model's name in the body, and routes read headers."""

ON_ANSWER = (
    f"""
local MISTAKES = {{{", ".join(f"[[{text}]]" for text in CLIENT_MISTAKES)}}}
local AWAY = {{{", ".join(f"[[{text}]]" for text in AWAY)}}}
local NOT_READ, LONGEST = "{NOT_READ}", {LONGEST_MESSAGE}
"""
    + r"""

local function is_mistake(text)
  for _, beginning in ipairs(MISTAKES) do
    if text:find('{"error":"' .. beginning, 1, true) == 1 then return true end
  end
  return false
end

local function is_away(text)
  for _, words in ipairs(AWAY) do
    if text:find(words, 1, true) then return true end
  end
  return false
end

local function read_grpc(headers, status)
  local said = headers:get("grpc-message") or ""
  if #said > LONGEST then
    headers:replace("grpc-message", (said:sub(1, LONGEST):gsub("%%%x?$", "")) .. "...")
  end
  if status == "13" and said == NOT_READ then
    headers:replace("grpc-status", "3")
    headers:replace("grpc-message", "expected a ModelInferRequest of KServe v2, found bytes that are none")
  elseif (status == "13" or status == "5") and is_away(said) then headers:replace("grpc-status", "14") end
end

local function read_http(answer)
  local body = answer:body()
  local start = body and body:getBytes(0, math.min(body:length(), 500)) or ""
  -- What was got before the body came is out of reach now.
  if is_away(start) then answer:headers():replace(":status", "503")
  elseif is_mistake(start) then answer:headers():replace(":status", "400") end
end

-- An answer with a body has its gRPC status behind it, where no error of Triton's is.
function envoy_on_response(answer)
  local headers = answer:headers()
  local grpc, status = headers:get("grpc-status"), headers:get(":status")
  if grpc then read_grpc(headers, grpc)
  elseif status == "500" or status == "404" then read_http(answer) end
end
"""
)
"""Runs between a lane and Envoy's router, so that no retry, count or ejection follows from a client's mistake, and a
request that hit a dying process is tried again."""


def request_guard() -> Json:
    """The endpoint's filter that looks at requests; behind the one that waits for the whole body."""
    return _lua(ON_REQUEST)


def answer_guard() -> list[Json]:
    """A cluster's filters: the client's mistakes among a lane's faults are called what they are."""
    codec = {"@type": "type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"}
    return [_lua(ON_ANSWER), {"name": "envoy.filters.http.upstream_codec", "typed_config": codec}]


def _lua(script: str) -> Json:
    kind = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
    return {"name": "lua", "typed_config": {"@type": kind, "default_source_code": {"inline_string": script}}}
