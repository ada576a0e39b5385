#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>

#include "graft/graft.h"
#include "graft/host.h"
#include "graft/tensors.h"
#include "running/input_ids.h"

struct graft_model {
  graft::LoadedModel loaded;
  std::int64_t width = 0;
};

namespace graft {
namespace {

struct Message {
  char* text;
  std::size_t size;

  int fail(int code, std::string_view what) const noexcept {
    if (!text || size == 0) return code;
    std::size_t length = std::min(what.size(), size - 1);
    // Never the first half of a character.
    while (length < what.size() && length > 0 && (what[length] & 0xC0) == 0x80) --length;
    std::memcpy(text, what.data(), length);
    text[length] = '\0';
    return code;
  }
};

/// Runs `body`; what it throws becomes a code and a message.
template <class Body>
int guarded(const Message& message, const Body& body) noexcept {
  try {
    body();
    return message.fail(GRAFT_DONE, "");
  } catch (const Error& error) {
    return message.fail(exit_code(error.kind()), error.what());
  } catch (const std::bad_alloc&) {
    return message.fail(GRAFT_ERROR_RESOURCE, "out of memory");
  } catch (const c10::Error& error) {
    return message.fail(GRAFT_ERROR_DEFECT, error.what_without_backtrace());
  } catch (const std::exception& error) {
    return message.fail(GRAFT_ERROR_DEFECT, error.what());
  } catch (...) {
    return message.fail(GRAFT_ERROR_DEFECT, "an exception of unknown type");
  }
}

void require(bool given, const char* what) {
  if (!given) throw Error(ErrorKind::usage, std::string(what) + " is NULL");
}

Context context_of(const graft_callbacks* callbacks) {
  Context context;
  if (!callbacks) return context;
  const graft_callbacks to = *callbacks;
  if (to.log)
    context.log = [to](LogLevel level, std::string_view component, std::string_view text) {
      to.log(to.self, static_cast<std::int32_t>(level), std::string(component).c_str(),
             std::string(text).c_str());
    };
  if (to.progress)
    context.progress = [to](std::string_view stage, std::uint64_t done, std::uint64_t total) {
      return to.progress(to.self, std::string(stage).c_str(), done, total) != 0;
    };
  return context;
}

/// Options as a host and what it is asked for.
struct Call {
  HostOptions host;
  LoadOptions load;

  Call(const char* json, const graft_callbacks* callbacks) {
    host.context = load.context = context_of(callbacks);
    if (!json) return;
    try {
      read(parse_json(json));
    } catch (Error& error) {
      Error wrong(ErrorKind::usage, error.what());
      throw wrong.at("options");
    }
  }

  /// The host. Files that were named and refused are told to the log.
  Host start() const {
    Host out(host);
    for (const auto& verdict : out.plugins().verdicts())
      if (verdict.named && !verdict.loaded)
        host.context.say(LogLevel::error, "plugins",
                         quote(verdict.file.native()) + " is not used: " + verdict.reason);
    return out;
  }

 private:
  void read(const Value& options) {
    for (const auto& [key, value] : options.as_object()) {
      if (key == "plugins")
        paths(options, key, host.plugin_files);
      else if (key == "plugin_path")
        paths(options, key, host.plugin_directories);
      else if (key == "registry")
        paths(options, key, host.registry_files);
      else if (key == "strict")
        host.strict = value.as_bool();
      else if (key == "quantization_config")
        load.quantization_config = value;
      else if (key == "ignore_quantization_config")
        load.ignore_quantization_config = value.as_bool();
      else if (key == "dtype")
        load.dtype = float_dtype_from_word(value.as_string(), ErrorKind::usage);
      else
        throw Error(ErrorKind::usage, "unknown option " + quote(key));
    }
  }

  static void paths(const Value& options, const std::string& key,
                    std::vector<std::filesystem::path>& out) {
    for (const auto& text : options.get_strings(key)) out.emplace_back(text);
  }
};

std::int64_t width_of(const Model& model) {
  const char* field = model.output() == Model::Output::logits ? "vocab_size" : "hidden_size";
  return model.text_config().at(field).as_int();
}

void forward(graft_model& model, const std::int64_t* ids, std::int64_t batch, std::int64_t tokens,
             float* output, std::size_t output_size) {
  if (batch < 1 || tokens < 1 || tokens > std::numeric_limits<std::int32_t>::max() / batch)
    throw Error(ErrorKind::usage, "batch and tokens are out of range")
        .found(std::to_string(batch) + " and " + std::to_string(tokens));
  const auto needed = static_cast<std::size_t>(batch) * static_cast<std::size_t>(tokens) *
                      static_cast<std::size_t>(model.width);
  if (output_size < needed)
    throw Error(ErrorKind::usage, "the output is too small")
        .expected(std::to_string(needed) + " elements")
        .found(std::to_string(output_size));
  const c10::InferenceMode inference;
  Batch input;
  input.input_ids = input_ids(*model.loaded.model, {ids, static_cast<std::size_t>(batch * tokens)})
                        .view({batch, tokens});
  const auto result = model.loaded.model->forward(input).to(at::kFloat).contiguous();
  std::memcpy(output, result.const_data_ptr<float>(), needed * sizeof(float));
}

}  // namespace
}  // namespace graft

using graft::guarded;

const char* graft_version(void) { return GRAFT_VERSION; }

int graft_plan(const char* folder, const char* options, const graft_callbacks* callbacks,
               char** json, char* message, size_t message_size) {
  return guarded({message, message_size}, [&] {
    graft::require(folder, "folder");
    graft::require(json, "json");
    const graft::Call call(options, callbacks);
    const auto plan = call.start().plan(
        graft::Checkpoint::open(folder, {.weights_optional = true}), call.load);
    const std::string text = graft::to_json(plan.to_value());
    *json = new char[text.size() + 1];
    std::memcpy(*json, text.c_str(), text.size() + 1);
  });
}

int graft_convert(const char* folder, const char* options, const graft_callbacks* callbacks,
                  const char* output, char* message, size_t message_size) {
  return guarded({message, message_size}, [&] {
    graft::require(folder, "folder");
    graft::require(output, "output");
    const graft::Call call(options, callbacks);
    const graft::Host host = call.start();
    host.save(host.load(folder, call.load), output);
  });
}

int graft_load(const char* folder, const char* options, const graft_callbacks* callbacks,
               graft_model** model, char* message, size_t message_size) {
  return guarded({message, message_size}, [&] {
    graft::require(folder, "folder");
    graft::require(model, "model");
    const graft::Call call(options, callbacks);
    auto loaded = call.start().load(folder, call.load);
    const auto width = graft::width_of(*loaded.model);
    *model = new graft_model{std::move(loaded), width};
  });
}

int64_t graft_output_width(const graft_model* model) { return model ? model->width : 0; }

int graft_forward(graft_model* model, const int64_t* ids, int64_t batch, int64_t tokens,
                  float* output, size_t output_size, char* message, size_t message_size) {
  return guarded({message, message_size}, [&] {
    graft::require(model, "model");
    graft::require(ids, "ids");
    graft::require(output, "output");
    graft::forward(*model, ids, batch, tokens, output, output_size);
  });
}

void graft_free_model(graft_model* model) { delete model; }
void graft_free_text(char* text) { delete[] text; }
