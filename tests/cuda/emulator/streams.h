// Streams as the driver promises them, and no better: what is put into one is done in order, and later.
//
// Nothing runs until somebody must wait for it. So a transfer out of pinned memory that is filled again
// too early carries the new bytes, work that did not wait for another stream finds its memory unwritten,
// and a result read without waiting is still poison.
#pragma once
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <vector>

namespace emulator {

// What a stream was given while it was captured, to be run again and again. Memory that was allocated
// meanwhile is the graph's and stays where it is: fresh when its allocation runs, gone when it is freed.
struct Graph {
    std::vector<std::function<void()>> work;
    std::vector<void *> memory;
    // Allocated and not freed again.
    std::set<void *> live;
    // Something was asked for that a capture cannot have.
    bool invalid = false;
    Graph() = default;
    Graph(const Graph &) = delete;
    ~Graph();
};

struct Stream {
    std::deque<std::function<void()>> queue;
    uint64_t put = 0, done = 0;
    // Where work goes instead, while it is captured.
    std::shared_ptr<Graph> capture;
};

struct Event {
    // What it was recorded behind, last.
    std::shared_ptr<Stream> stream;
    uint64_t position = 0;
    std::shared_ptr<std::chrono::steady_clock::time_point> time;
};

// The stream of a handle. 2 stands for the stream of the calling thread, and each thread has its own; 0
// and 1 for one that everything waits for.
std::shared_ptr<Stream> stream_of(void *handle);
void *create_stream();
void destroy_stream(void *handle);

// Puts `work` behind all that `handle` was given before, or into the graph it is captured in.
void put(void *handle, std::function<void()> work);
// Runs all of it up to `position`, or at all; with whatever it waits for.
void run_until(Stream &stream, uint64_t position);
void run_all(Stream &stream);
void run_everything();

}  // namespace emulator
