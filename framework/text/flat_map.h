#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace graft {

/// A hash map from 64-bit keys to small values, in one array: for tables of a few hundred thousand
/// entries that are filled once and read in inner loops. The key ~0 is reserved.
template <class T>
class FlatMap {
 public:
  FlatMap() : slots_(16) {}

  void reserve(std::size_t count) {
    std::size_t wanted = std::bit_ceil(count + count / 2 + 16);
    if (wanted > slots_.size()) rehash(wanted);
  }

  /// The value of `key`, or nullptr.
  const T* find(std::uint64_t key) const {
    const Slot& slot = slots_[probe(key)];
    return slot.key == key ? &slot.value : nullptr;
  }

  /// The value of `key`, made when it is new.
  T& operator[](std::uint64_t key) {
    if ((count_ + 1) * 3 > slots_.size() * 2) rehash(slots_.size() * 2);
    Slot& slot = slots_[probe(key)];
    if (slot.key != key) {
      slot.key = key;
      ++count_;
    }
    return slot.value;
  }

 private:
  struct Slot {
    std::uint64_t key = ~std::uint64_t{0};
    T value{};
  };

  /// The slot of `key`, or the empty one where it belongs.
  std::size_t probe(std::uint64_t key) const {
    const std::size_t mask = slots_.size() - 1;
    std::uint64_t hash = key * 0x9E3779B97F4A7C15u;
    std::size_t i = (hash ^ hash >> 32) & mask;
    while (slots_[i].key != key && slots_[i].key != ~std::uint64_t{0}) i = (i + 1) & mask;
    return i;
  }

  void rehash(std::size_t size) {
    std::vector<Slot> old(size);
    old.swap(slots_);
    for (Slot& slot : old)
      if (slot.key != ~std::uint64_t{0}) slots_[probe(slot.key)] = slot;
  }

  std::vector<Slot> slots_;
  std::size_t count_ = 0;
};

}  // namespace graft
