#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <fstream>

#include "calibrated_model.h"
#include "graft/calibration.h"
#include "graft/tokenizer.h"

using namespace graft;
using namespace graft::test;

TEST_CASE("windows of calibration text have the tokenizer's special tokens around each") {
  const auto bert = Tokenizer::open(kGolden / "tokenizer/bert");
  const std::string text = "one two three four five six seven eight nine ten";
  const auto whole = bert.encode(text);
  const auto ids = calibration_ids(bert, text, {3, 5});
  REQUIRE(ids.sizes() == at::IntArrayRef{3, 5});
  for (std::int64_t i = 0; i < 3; ++i) {
    CHECK(ids[i][0].item<std::int64_t>() == whole.front());  // [CLS]
    CHECK(ids[i][4].item<std::int64_t>() == whole.back());   // [SEP]
  }
  CHECK(ids[0][1].item<std::int64_t>() == whole[1]);
  // A byte-level tokenizer without them adds none.
  const auto plain = calibration_ids(Tokenizer::open(kGolden / "tokenizer/gpt2"), text, {1, 512});
  CHECK(plain.size(1) ==
        static_cast<std::int64_t>(Tokenizer::open(kGolden / "tokenizer/gpt2").encode(text).size()));
}

TEST_CASE("several calibration files share the samples by their weights, and chats are texts") {
  const TemporaryFolder folder;
  fs::copy(kGolden / "tokenizer/smollm/tokenizer.json", folder.path());
  const auto write = [&](const char* name, const std::string& content) {
    std::ofstream(folder.path() / name, std::ios::binary) << content;
    return folder.path() / name;
  };
  std::string words, chats;
  for (int i = 0; i < 60; ++i) words += "All that is gold does not glitter. ";
  for (int i = 0; i < 20; ++i)
    chats += R"({"messages": [{"role": "user", "content": "Who are you?"}, )"
             R"({"role": "assistant", "content": "Nobody."}]})"
             "\n";
  const auto text = write("a.txt", words), chat = write("b.jsonl", chats);
  const auto read = [&](const std::vector<CalibrationFile>& files, const CalibrationSize& size) {
    return read_calibration_files(folder.path(), files, size);
  };
  const auto message = message_of([&] { read({{chat, 1}}, {4, 16}); });
  CHECK(contains(message, "b.jsonl': line 1: "));
  CHECK(contains(message, "this model has no chat template; give the whole text, in a field"));
  write("chat_template.jinja",
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}");
  const auto both = read({{text, 3}, {chat, 1}}, {8, 16});
  CHECK((both.samples == std::vector<std::int64_t>{6, 2}));
  REQUIRE(both.ids.sizes() == at::IntArrayRef{8, 16});
  CHECK(both.ids.narrow(0, 0, 6).equal(read({{text, 1}}, {6, 16}).ids));
  CHECK(both.ids.narrow(0, 6, 2).equal(read({{chat, 1}}, {2, 16}).ids));
  const auto tokenizer = Tokenizer::open(folder.path());
  const auto turns = tokenizer.decode({both.ids[6].const_data_ptr<std::int64_t>(), 16});
  CAPTURE(turns);
  CHECK(turns.starts_with("<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"));
  CHECK(both.held_out.size(0) == 8);
  // However light, a file gives a sample.
  CHECK((read({{text, 1000}, {chat, 0.001}}, {8, 16}).samples == std::vector<std::int64_t>{7, 1}));
  CHECK((read({{chat, 1}, {chat, 1}, {text, 1}}, {8, 16}).samples ==
         std::vector<std::int64_t>{3, 2, 3}));
  CHECK(contains(message_of([&] { read({{text, 1}, {chat, 1}}, {1, 16}); }),
                 "more calibration files than samples: expected at least 2 samples, found 1"));
  CHECK(contains(message_of([&] { read({{text, 1}, {chat, 0}}, {8, 16}); }),
                 "b.jsonl': a calibration file has no share of the samples"));
  const auto brief = write("c.txt", "one two three four five six seven eight nine ten");
  CHECK(contains(message_of([&] { read({{text, 1}, {brief, 1}}, {8, 64}); }),
                 "c.txt': the files give samples of different lengths: expected 64 tokens, as "));
  write("d.jsonl", R"({"messages": [{"role": "tool", "content": "x"}]})");
  CHECK(contains(message_of([&] { read({{folder.path() / "d.jsonl", 1}}, {8, 16}); }),
                 "d.jsonl': line 1: unknown role 'tool'"));
}

TEST_CASE("calibration text that cannot be used is refused") {
  const auto message = [&](const at::Tensor& ids, const char* settings = kSettings[0]) {
    return message_of([&] { calibrated(kLlama, settings, ids); });
  };
  CHECK(contains(message(at::full({1, 4}, 1 << 20, at::kLong)), "not in the model's vocabulary"));
  CHECK(contains(message(at::zeros({4}, at::kLong)), "[B, T] int64, not empty"));
  CHECK(contains(message(at::zeros({1, 0}, at::kLong)), "[B, T] int64, not empty"));
  CHECK(contains(message(at::ones({1, 4}, at::kLong),
                         R"({"quant_method": "bitsandbytes", "load_in_8bit": true})"),
                 "makes no use of calibration text"));
}
