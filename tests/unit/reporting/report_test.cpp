#include <ATen/ATen.h>
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <regex>
#include <set>

#include "../host/edited_folder.h"
#include "reporting/report.h"

using namespace graft;
using namespace graft::test;
namespace fs = std::filesystem;

namespace {

const fs::path kGolden = GRAFT_TEST_DATA;
const fs::path kLlama = kGolden / "vectors/tiny_llama_dense_fp16";
const fs::path kMoe = kGolden / "vectors/tiny_qwen3moe_dense_fp16";
constexpr const char* kGptq = R"({"quant_method": "gptq", "bits": 4, "group_size": 32})";

TestHost& host() {
  static TestHost instance;
  return instance;
}

LoadedModel calibrated(const fs::path& folder, const at::Tensor& ids) {
  LoadOptions options;
  options.quantization_config = parse_json(kGptq);
  options.calibration = ids;
  return host().host->load(folder, options);
}

at::Tensor random_ids(std::int64_t samples, std::int64_t length) {
  at::manual_seed(7);
  return at::randint(64, {samples, length}, at::kLong);
}

TensorToWrite ids_to_write(const at::Tensor& ids) {
  return {"input_ids", Dtype::I64, ids.sizes().vec(), [ids] {
            return std::shared_ptr<const void>(ids.const_data_ptr(), [ids](const void*) {});
          }};
}

ReportInput input_of(const at::Tensor& ids) {
  ReportInput input;
  input.model = "tiny";
  input.call = parse_json(R"({"samples": 32})");
  input.calibration = ReportedText{"text.txt", ids, 0};
  return input;
}

std::set<std::string> numbers_in(const std::string& text) {
  static const std::regex number("[0-9]+(\\.[0-9]+)?(e[-+]?[0-9]+)?");
  std::set<std::string> out;
  for (std::sregex_iterator at(text.begin(), text.end(), number), end; at != end; ++at)
    out.insert(at->str());
  return out;
}

/// What a page says: without its style, the labels of axes, and tags with what is in them.
std::string words_of(std::string html) {
  html = html.substr(html.find("</style>"));
  html = std::regex_replace(html, std::regex("<text class=\"axis\"[^>]*>[^<]*</text>"), " ");
  html = std::regex_replace(html, std::regex("<h2>[^<]*</h2>|<p class=\"soft\">"), " ");
  html = std::regex_replace(html, std::regex("<wbr>"), "");
  html = std::regex_replace(html, std::regex("<[^>]*>"), " ");
  return std::regex_replace(html, std::regex("&#39;"), "'");
}

void check_every_number_is_in(const std::string& html, const Value& report) {
  const auto known = numbers_in(to_json(report));
  std::size_t shown = 0;
  for (const auto& number : numbers_in(words_of(html))) {
    CAPTURE(number);
    CHECK(known.contains(number));
    ++shown;
  }
  CHECK(shown > 10);  // or the test would show nothing
}

}  // namespace

TEST_CASE("every number of a report's page is in the report, with the same digits") {
  const auto ids = random_ids(4, 48);
  const auto loaded = calibrated(kLlama, ids);
  ReportInput input = input_of(ids);
  LoadOptions dense;
  input.measured_on = ReportedText{"eval.txt", random_ids(3, 40), 0};
  input.measured =
      compare(host().host->load(kLlama, dense).model, loaded.model, input.measured_on->ids);
  const Value report = make_report(loaded, input);
  const std::string html = to_html(report);
  check_every_number_is_in(html, report);
  CHECK(report.at("comparison").at("layers").as_array().size() == 2);
  CHECK(contains(html, to_json(report.at("comparison").at("kl_mean"))));
  CHECK(contains(html, to_json(report.at("sizes").at("bits_per_weight"))));
  CHECK(html.find("<script") == std::string::npos);
  CHECK(html.find("http") == html.find("http-equiv"));
  CHECK(html.find("http", html.find("http-equiv") + 4) == std::string::npos);
  // The report of a comparison alone.
  Value alone;
  alone.set("graft", "0.1.0");
  alone.set("model", "b");
  alone.set("reference", "a");
  alone.set("comparison", report.at("comparison"));
  check_every_number_is_in(to_html(alone), alone);
  const std::string card = model_card(report);
  const auto known = numbers_in(to_json(report));
  for (const auto& number : numbers_in(card)) CHECK(known.contains(number));
}

TEST_CASE("text of a file cannot become markup of the page") {
  const auto ids = random_ids(1, 12);
  auto loaded = calibrated(kLlama, ids);
  ReportInput input = input_of(ids);
  input.model = "<script>alert(1)</script>\x01\xff";
  input.calibration->file = "\"><img src=x onerror='y'>|`&";
  loaded.calibration.front().fallback = "<b>plain</b>";
  loaded.calibration.front().modules.front() = "layers.0.<i>q";
  const Value report = make_report(loaded, input);
  const std::string html = to_html(report);
  for (const char* markup : {"<script", "<img", "<b>plain", "<i>q"})
    CHECK(html.find(markup) == std::string::npos);
  CHECK(contains(html, "&lt;script&gt;alert(1)&lt;/script&gt;\xEF\xBF\xBD\xEF\xBF\xBD"));
  CHECK(contains(html, "&lt;b&gt;plain&lt;/b&gt;"));
  CHECK(parse_json(to_json(report)) == report);
}

TEST_CASE("a second moment that is not positive definite is in the report, with its modules") {
  const auto ids = random_ids(1, 12);
  auto loaded = calibrated(kLlama, ids);
  const std::string reason = "the second moment of the input is not positive definite";
  loaded.calibration[1].fallback = loaded.calibration[0].fallback = reason;
  const Value report = make_report(loaded, input_of(ids));
  CHECK(report.at("fallback_modules").as_int() == 4);
  const auto& fallbacks = report.at("fallbacks").as_array();
  REQUIRE(fallbacks.size() == 1);
  CHECK(fallbacks[0].at("reason").as_string() == reason);
  CHECK(fallbacks[0].at("modules").as_int() == 4);
  CHECK(report.at("groups").as_array()[0].at("fallback").as_string() == reason);
  CHECK(contains(to_html(report), "4 modules: " + reason));
  CHECK(contains(model_card(report), "| modules without usable statistics | 4 |"));
}

TEST_CASE("activations that are not finite leave a model and a report that says which modules") {
  const EditedFolder folder("vectors/tiny_llama_dense_fp16", [](Value&, RawTensors& tensors) {
    auto& norm = tensors.at("model.layers.1.input_layernorm.weight");
    norm.data<std::uint16_t>()[3] = 0x7bff;  // 65504: products in fp16 overflow
    auto& k = tensors.at("model.layers.1.self_attn.k_proj.weight");
    for (std::size_t i = 0; i < k.count(); ++i) k.data<std::uint16_t>()[i] = 0x7800;
  });
  const auto ids = random_ids(2, 24);
  const auto loaded = calibrated(folder.path(), ids);
  const Value report = make_report(loaded, input_of(ids));
  CHECK(report.at("fallback_modules").as_int() > 0);
  const std::string reason = "the input is not finite somewhere in the calibration text";
  bool found = false;
  for (const auto& row : report.at("fallbacks").as_array())
    found |= row.at("reason").as_string() == reason;
  CHECK(found);
  CHECK(contains(to_html(report), reason));
  for (const auto& group : report.at("groups").as_array())
    if (group.get_string("fallback", "") == reason) CHECK_FALSE(group.find("relative_error"));
  CHECK(parse_json(to_json(report)) == report);  // no NaN, which JSON has not
  CHECK(parse_json(to_json(graft::to_value(loaded.calibration))) ==
        graft::to_value(loaded.calibration));
  LoadOptions dense;
  ReportInput measured = input_of(ids);
  measured.measured_on = ReportedText{"eval.txt", ids, 0};
  measured.measured = compare(host().host->load(folder.path(), dense).model, loaded.model, ids);
  CHECK(measured.measured->not_finite > 0);
  CHECK(std::isnan(measured.measured->kl_mean));
  const Value all = make_report(loaded, measured);
  CHECK_FALSE(all.at("comparison").find("kl_mean"));
  CHECK(contains(to_html(all), "are not finite, so nothing could be measured over tokens"));
}

TEST_CASE("experts are in the report with their tokens, and those without any are counted") {
  const auto ids = random_ids(1, 1);
  const auto loaded = calibrated(kMoe, ids);
  const Value report = make_report(loaded, input_of(ids));
  const auto& experts = report.at("experts").as_array();
  REQUIRE_FALSE(experts.empty());
  std::int64_t without = 0;
  for (const auto& row : experts) {
    std::int64_t zeros = 0;
    for (const auto& tokens : row.at("tokens").as_array()) zeros += tokens.as_int() == 0;
    CHECK(row.at("without_tokens").as_int() == zeros);
    CHECK(row.at("fewest_tokens").as_int() <= row.at("most_tokens").as_int());
    CHECK(row.at("experts").as_int() ==
          static_cast<std::int64_t>(row.at("tokens").as_array().size()));
    without += zeros;
  }
  CHECK(without > 0);
  CHECK(report.at("fallback_modules").as_int() == 3 * without);
  const std::string html = to_html(report);
  CHECK(contains(html, "no token of the calibration text reached it"));
  CHECK(contains(html, "Tokens of the experts"));
  check_every_number_is_in(html, report);
}

TEST_CASE("three calibration tokens quantize a model, and the report says that they are few") {
  const auto ids = random_ids(1, 3);
  const auto loaded = calibrated(kLlama, ids);
  const Value report = make_report(loaded, input_of(ids));
  CHECK(report.at("calibration").at("tokens").as_int() == 3);
  REQUIRE(report.at("notes").as_array().size() == 1);
  CHECK(report.at("notes").as_array()[0].as_string() ==
        "14 modules saw fewer tokens than they have inputs: more calibration text is better");
  CHECK(contains(to_html(report), "14 modules saw fewer tokens than they have inputs"));
  const auto enough = random_ids(4, 48);
  CHECK(make_report(calibrated(kLlama, enough), input_of(enough)).at("notes").as_array().empty());
}

TEST_CASE("a sample of padding is not used, and the report counts it") {
  const TemporaryFolder folder;
  auto rows = random_ids(4, 16);
  rows[1].fill_(5);
  write_tensor_file(folder.path() / "ids.safetensors", {ids_to_write(rows)});
  const auto text = read_calibration_files(
      kLlama, {CalibrationFile{folder.path() / "ids.safetensors"}}, {3, 512});
  CHECK(text.left_out == 1);
  CHECK(text.ids.equal(at::stack({rows[0], rows[2]})));
  CHECK(text.held_out.equal(rows.narrow(0, 3, 1)));
  ReportInput input = input_of(text.ids);
  input.calibration->left_out = text.left_out;
  const Value report = make_report(calibrated(kLlama, text.ids), input);
  CHECK(report.at("calibration").at("left_out").as_int() == 1);
  CHECK(report.at("calibration").at("samples").as_int() == 2);
  CHECK(contains(to_html(report),
                 "1 calibration sample was one token over and over, as padding is, and not used"));
  auto both = rows.narrow(0, 0, 2).clone();
  both[0].fill_(6);
  write_tensor_file(folder.path() / "all.safetensors", {ids_to_write(both)});
  CHECK(contains(message_of([&] {
                   read_calibration_files(
                       kLlama, {CalibrationFile{folder.path() / "all.safetensors"}}, {3, 512});
                 }),
                 "each sample is one token over and over"));
}

TEST_CASE("a report names no folder of the machine and no time") {
  const auto ids = random_ids(2, 16);
  const auto loaded = calibrated(kLlama, ids);
  const std::string text = to_json(make_report(loaded, input_of(ids)));
  CHECK(text.find(kGolden.string()) == std::string::npos);
  CHECK(text.find("seconds") == std::string::npos);
}

TEST_CASE("the name of the model it was made from is known from the cache and from the config") {
  const auto named = [](const char* name) {
    return EditedFolder("vectors/tiny_llama_dense_fp16",
                        [&](Value& config, RawTensors&) { config.set("_name_or_path", name); });
  };
  CHECK(base_model_name(Checkpoint::open(named("org/model-1.5").path())) == "org/model-1.5");
  for (const char* none : {"/home/me", "a/b/c", "../x", "model", "org/<x>", ""}) {
    const auto folder = named(none);
    CHECK(base_model_name(Checkpoint::open(folder.path())) == "");
  }
  const TemporaryFolder cache;
  const auto snapshot = cache.path() / "models--some--model/snapshots/0123abcd";
  fs::create_directories(snapshot.parent_path());
  fs::copy(kLlama, snapshot);
  CHECK(base_model_name(Checkpoint::open(snapshot)) == "some/model");
}
