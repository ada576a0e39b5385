#include "checkpoint/shard_index.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <unordered_set>

#include "checkpoint/json_events.h"
#include "checkpoint/natural_order.h"

namespace graft {
namespace {

/// Takes {"metadata": anything, "weight_map": {tensor: shard}}.
class IndexReader : public JsonEvents {
 public:
  explicit IndexReader(std::size_t max_tensors) : max_tensors_(max_tensors) {}

  bool null() override { return skipping() || JsonEvents::null(); }
  bool boolean(bool b) override { return skipping() || JsonEvents::boolean(b); }
  bool number_integer(number_integer_t i) override {
    return skipping() || JsonEvents::number_integer(i);
  }
  bool number_unsigned(number_unsigned_t u) override {
    return skipping() || JsonEvents::number_unsigned(u);
  }
  bool number_float(number_float_t d, const string_t& text) override {
    return skipping() || JsonEvents::number_float(d, text);
  }
  bool start_array(std::size_t size) override {
    if (place_ != Place::metadata) return JsonEvents::start_array(size);
    return go_deeper();
  }
  bool end_array() override { return come_back(); }

  bool start_object(std::size_t size) override {
    switch (place_) {
      case Place::start:
        place_ = Place::file;
        return true;
      case Place::weight_map:
        place_ = Place::tensor;
        return true;
      case Place::metadata:
        return go_deeper();
      default:
        return JsonEvents::start_object(size);
    }
  }
  bool end_object() override {
    switch (place_) {
      case Place::metadata:
        return come_back();
      case Place::tensor:
        place_ = Place::file;
        return true;
      default:
        place_ = Place::end;
        return true;
    }
  }

  bool key(string_t& name) override {
    if (place_ == Place::metadata) return true;
    if (place_ == Place::file) {
      bool& seen = name == "weight_map" ? has_weight_map_ : has_metadata_;
      if (name != "weight_map" && name != "metadata")
        throw Error(ErrorKind::model, "unknown field " + quote(name))
            .expected("metadata and weight_map");
      if (seen) throw Error(ErrorKind::model, "the key " + quote(name) + " occurs twice");
      seen = true;
      place_ = name == "weight_map" ? Place::weight_map : Place::metadata;
      return true;
    }
    if (index_.weight_map.size() >= max_tensors_)
      throw Error(ErrorKind::model, "the index lists too many tensors")
          .expected("at most " + std::to_string(max_tensors_));
    index_.weight_map.emplace_back(std::move(name), 0);
    place_ = Place::shard;
    return true;
  }

  bool string(string_t& text) override {
    if (place_ == Place::metadata) return skipping();
    if (place_ != Place::shard) return JsonEvents::string(text);
    if (text.empty() || text == "." || text == ".." ||
        text.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos)
      throw Error(ErrorKind::model, "the shard lies outside the model's folder")
          .at("tensor " + quote(index_.weight_map.back().first))
          .expected("the name of a file beside the index")
          .found(quote(text));
    const auto next = static_cast<std::uint32_t>(shards_.size());
    index_.weight_map.back().second = shards_.try_emplace(std::move(text), next).first->second;
    place_ = Place::tensor;
    return true;
  }

  ShardIndex take() {
    if (!has_weight_map_) throw Error(ErrorKind::model, "the field 'weight_map' is missing");
    std::unordered_set<std::string_view> names(index_.weight_map.size());
    for (const auto& [name, shard] : index_.weight_map)
      if (!names.insert(name).second)
        throw Error(ErrorKind::model, "the tensor occurs twice in the index")
            .at("tensor " + quote(name));
    std::vector<std::uint32_t> position(shards_.size());
    for (auto& [name, number] : shards_) {
      position[number] = static_cast<std::uint32_t>(index_.shards.size());
      index_.shards.push_back(name);
    }
    for (auto& [name, shard] : index_.weight_map) shard = position[shard];
    return std::move(index_);
  }

 private:
  enum class Place { start, file, metadata, weight_map, tensor, shard, end };
  struct NaturalLess {
    bool operator()(const std::string& a, const std::string& b) const { return natural_less(a, b); }
  };

  /// Whether the event belongs to the metadata, which is not used.
  bool skipping() {
    if (place_ == Place::metadata && depth_ == 0)
      place_ = Place::file;
    else if (place_ != Place::metadata)
      return false;
    return true;
  }
  bool go_deeper() {
    ++depth_;
    return true;
  }
  bool come_back() {
    if (--depth_ == 0) place_ = Place::file;
    return true;
  }

  bool refuse(const std::string& found) override {
    Error error(ErrorKind::model, "wrong value");
    switch (place_) {
      case Place::start:
        error.expected("an object");
        break;
      case Place::weight_map:
        error.at("'weight_map'").expected("an object");
        break;
      case Place::shard:
        error.at("tensor " + quote(index_.weight_map.back().first)).expected("the name of a shard");
        break;
      default:
        break;
    }
    throw error.found(found);
  }

  std::size_t max_tensors_;
  Place place_ = Place::start;
  std::size_t depth_ = 0;
  bool has_metadata_ = false, has_weight_map_ = false;
  ShardIndex index_;
  std::map<std::string, std::uint32_t, NaturalLess> shards_;
};

}  // namespace

ShardIndex parse_shard_index(std::string_view text, std::size_t max_tensors) {
  // The JSON library skips a byte order mark and takes a zero byte for the end of the text.
  if (text.starts_with("\xEF\xBB\xBF"))
    throw Error(ErrorKind::model, "the file starts with a byte order mark")
        .at("line 1")
        .hint("save it as UTF-8 without one");
  try {
    if (const auto zero = text.find('\0'); zero != std::string_view::npos)
      throw Error(ErrorKind::model, "the text has a zero byte").at("byte " + std::to_string(zero));
    IndexReader reader(max_tensors);
    nlohmann::json::sax_parse(text, &reader);
    return reader.take();
  } catch (Error& error) {
    throw error.hint("the index is damaged or was made to mislead: get it from its source again");
  }
}

}  // namespace graft
