#include "graft/graft.h"

#include <array>
#include <cstring>

#include "graft/value.h"

#include "model_folder.h"
#include "thrown_by.h"

using graft::test::contains;
using graft::test::golden;

namespace {

const std::string kDense = golden("vectors/tiny_llama_dense_fp16").string();
const char* const kNf4 =
    R"({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}})";

struct Answer {
  int code = 0;
  std::string message;
};

template <class Function, class... Arguments>
Answer call(const Function& function, Arguments... arguments) {
  std::array<char, 1024> message;
  message.fill('x');
  const int code = function(arguments..., message.data(), message.size());
  return {code, message.data()};
}

Answer load(const std::string& folder, const char* options, graft_model** model,
            const graft_callbacks* callbacks = nullptr) {
  return call(graft_load, folder.c_str(), options, callbacks, model);
}

struct Loaded {
  explicit Loaded(const char* options = nullptr) {
    const auto answer = load(kDense, options, &model);
    CHECK(answer.code == GRAFT_DONE);
    CHECK(answer.message.empty());
  }
  ~Loaded() { graft_free_model(model); }
  Loaded(const Loaded&) = delete;
  Loaded& operator=(const Loaded&) = delete;

  Answer forward(const std::vector<std::int64_t>& ids, std::int64_t batch, std::size_t size) {
    logits.assign(size, -1.0F);
    return call(graft_forward, model, ids.data(), batch,
                static_cast<std::int64_t>(ids.size()) / batch, logits.data(), size);
  }

  graft_model* model = nullptr;
  std::vector<float> logits;
};

}  // namespace

TEST_CASE("the C interface plans, converts, loads and runs") {
  char* json = nullptr;
  CHECK(call(graft_plan, kDense.c_str(), kNf4, nullptr, &json).code == GRAFT_DONE);
  CHECK(graft::parse_json(json).at("method").as_string() == "bitsandbytes");
  graft_free_text(json);

  const graft::test::TemporaryFolder folder;
  const std::string out = (folder.path() / "out").string();
  CHECK(call(graft_convert, kDense.c_str(), kNf4, nullptr, out.c_str()).code == GRAFT_DONE);
  Loaded here(kNf4);
  CHECK(graft_output_width(here.model) == 64);
  REQUIRE(here.forward({1, 2, 3, 4, 5, 6}, 2, 2 * 3 * 64).code == GRAFT_DONE);
  graft_model* saved = nullptr;
  REQUIRE(load(out, nullptr, &saved).code == GRAFT_DONE);
  std::vector<float> logits(2 * 3 * 64);
  const std::vector<std::int64_t> ids{1, 2, 3, 4, 5, 6};
  CHECK(graft_forward(saved, ids.data(), 2, 3, logits.data(), logits.size(), nullptr, 0) ==
        GRAFT_DONE);
  CHECK(logits == here.logits);
  graft_free_model(saved);
}

TEST_CASE("the C interface answers a wrong call with a code and a sentence") {
  graft_model* model = nullptr;
  CHECK(contains(load("nowhere", nullptr, &model).message, "nowhere"));
  CHECK(load("nowhere", nullptr, &model).code == GRAFT_ERROR_MODEL);
  CHECK(contains(load(kDense, R"({"colour": 1})", &model).message,
                 "options: unknown option 'colour'"));
  CHECK(contains(load(kDense, "{", &model).message, "options: line 1"));
  CHECK(load(kDense, "[]", &model).code == GRAFT_ERROR_USAGE);
  CHECK(contains(load(kDense, R"({"dtype": "int9"})", &model).message,
                 "expected float32, bfloat16 or float16, found 'int9'"));
  const auto unknown = load(kDense, R"({"quantization_config": {"quant_method": "x"}})", &model);
  CHECK(unknown.code == GRAFT_ERROR_PLUGIN);
  CHECK(contains(unknown.message, "no plugin claims the quantization method 'x'"));
  CHECK(load(kDense, R"({"registry": ["/nowhere.yaml"]})", &model).code == GRAFT_ERROR_PLUGIN);
  CHECK(model == nullptr);
  CHECK(load(kDense, nullptr, nullptr).message == "model is NULL");
  CHECK(graft_load(nullptr, nullptr, nullptr, &model, nullptr, 0) == GRAFT_ERROR_USAGE);
  graft_free_model(nullptr);
  graft_free_text(nullptr);
}

TEST_CASE("the C interface refuses ids and buffers that do not fit") {
  Loaded here;
  CHECK(here.forward({1, 2}, 1, 127).message ==
        "the output is too small: expected 128 elements, found 127");
  CHECK(here.logits.front() == -1.0F);
  CHECK(here.forward({1, 64}, 1, 128).message ==
        "ids[1]: a token id is not in the model's vocabulary: expected 0 to 63, found 64; the "
        "tokenizer may belong to another model");
  CHECK(here.forward({-1}, 1, 64).code == GRAFT_ERROR_USAGE);
  const std::int64_t id = 1;
  float out = 0;
  for (const auto& [batch, tokens] : {std::pair<std::int64_t, std::int64_t>{0, 1},
                                      {1, 0},
                                      {-1, 1},
                                      {std::int64_t{1} << 40, std::int64_t{1} << 40}})
    CHECK(graft_forward(here.model, &id, batch, tokens, &out, 1, nullptr, 0) == GRAFT_ERROR_USAGE);
  CHECK(graft_forward(nullptr, &id, 1, 1, &out, 1, nullptr, 0) == GRAFT_ERROR_USAGE);
}

TEST_CASE("the C interface cuts a message that does not fit and ends it") {
  std::array<char, 8> message;
  graft_model* model = nullptr;
  graft_load("nowhere", nullptr, nullptr, &model, message.data(), message.size());
  CHECK(std::strlen(message.data()) == 7);
}

TEST_CASE("the C interface never ends a message inside a character") {
  for (std::size_t size = 2; size < 24; ++size) {
    std::vector<char> message(size);
    graft_model* model = nullptr;
    graft_load("\xC3\xA9\xC3\xA9\xC3\xA9", nullptr, nullptr, &model, message.data(), size);
    const std::string text = message.data();
    CHECK(static_cast<unsigned char>(text.empty() ? 'a' : text.back()) != 0xC3);
  }
}

TEST_CASE("the C interface tells the log why a plugin that was named is not used") {
  std::string heard;
  graft_callbacks callbacks{};
  callbacks.self = &heard;
  callbacks.log = [](void* self, std::int32_t, const char*, const char* text) {
    *static_cast<std::string*>(self) += text;
  };
  std::array<char, 400> message;
  char* json = nullptr;
  graft_plan(kDense.c_str(), R"({"plugins": ["/nonexistent.so"]})", &callbacks, &json,
             message.data(), message.size());
  graft_free_text(json);
  CHECK(contains(heard, "'/nonexistent.so' is not used: "));
}

TEST_CASE("callbacks of the C interface hear of a job and can stop it") {
  struct Heard {
    int messages = 0, steps = 0;
  } heard;
  const graft_callbacks callbacks{&heard,
                                  [](void* self, std::int32_t, const char*, const char*) {
                                    ++static_cast<Heard*>(self)->messages;
                                  },
                                  [](void* self, const char*, std::uint64_t, std::uint64_t) {
                                    return std::int32_t{++static_cast<Heard*>(self)->steps < 3};
                                  }};
  graft_model* model = nullptr;
  const auto answer = load(kDense,
                           R"({"quantization_config": {"quant_method": "bitsandbytes",
                               "load_in_4bit": true, "colour": 1}})",
                           &model, &callbacks);
  CHECK(answer.code == GRAFT_ERROR_INTERRUPTED);
  CHECK(model == nullptr);
  CHECK(heard.steps == 3);
  CHECK(heard.messages == 1);
}
