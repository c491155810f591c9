/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * vmsrs.h for C++17: requests by lambdas, errors as exceptions, containers in domains, and what has to be
 * given back in objects. Only a header: link what vmsrs.h needs.
 *
 *	vmsrs::app app = vmsrs::app::open("lists");
 *	vmsrs::domain user = app.domain("alice");
 *
 *	int count = user.run([&](vmsrs::request &request) {
 *		auto *list = user.root<vmsrs::vector<int>>();
 *
 *		if (!list)
 *			user.set_root(list = user.make<vmsrs::vector<int>>(user.allocator<int>()));
 *		list->push_back(1);
 *		return int(list->size());
 *	});
 *
 * An exception that the lambda throws gives the request up: what it wrote is discarded, its defers run, and
 * the exception goes on from run(), outside of the request. It must not lead into the domain. A request
 * that fails is an exception of class vmsrs::request_failed there. In requests errors are exceptions, too:
 * one that the lambda does not catch gives the request up.
 *
 * Containers. What is stored in a domain is used by other processes, and by the server after its restart. A
 * vmsrs::allocator in it stays good: it has the number of its domain. The address of a
 * std::pmr::memory_resource does not: keep containers with one (vmsrs::resource) out of domains that outlive the
 * process, or use them within one request. What a container needs outside of its memory, such as its type's
 * functions, is the program's: all processes must be built alike.
 */
#ifndef VMSRS_HPP
#define VMSRS_HPP

#if __cplusplus < 201703L
#error "vmsrs.hpp needs C++17; use vmsrs.h"
#endif

#include "vmsrs.h"

#include <cstddef>
#include <cstdint>
#include <cxxabi.h>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <memory_resource>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

namespace vmsrs {

/// A call was refused: code() says why, as `vmsrs_strerror()` describes it.
class error : public std::runtime_error {
public:
	explicit error(int code) : std::runtime_error(vmsrs_strerror(code)), code_(code) {}
	int code() const noexcept { return code_; }

private:
	int code_;
};

/// A request has failed: its error was suppressed, and everything that it wrote was discarded.
class request_failed : public error {
public:
	request_failed() : error(VMSRS_EFAILED)
	{
		if (vmsrs_last_failure(&failure_) != VMSRS_OK)
			failure_ = {};
	}
	const vmsrs_failure &failure() const noexcept { return failure_; }
	const char *kind() const noexcept { return vmsrs_kind_name(failure_.kind); }

private:
	vmsrs_failure failure_{};
};

/// Throws what a code says, unless that is VMSRS_OK.
inline void check(int code)
{
	if (code == VMSRS_OK)
		return;
	if (code == VMSRS_EFAILED)
		throw request_failed();
	if (code == VMSRS_ENOMEM)
		throw std::bad_alloc();
	throw error(code);
}

/// An allocator of standard containers, for elements in a domain. It can be stored there: it has the
/// number of the domain, which all processes know it by.
///
/// Memory is taken and given back in requests that hold the domain. Without, taking some is std::bad_alloc, and what
/// is given back stays taken.
template <typename T>
class allocator {
public:
	using value_type = T;

	explicit allocator(const vmsrs_domain *domain) noexcept : number_(vmsrs_domain_number(domain)) {}
	template <typename U>
	allocator(const allocator<U> &other) noexcept : number_(other.number()) {}

	T *allocate(std::size_t count)
	{
		const vmsrs_domain *domain = vmsrs_held_domain(number_);
		void *block = nullptr;

		if (domain && count <= SIZE_MAX / sizeof(T))
			block = vmsrs_alloc_aligned(domain, count * sizeof(T), alignof(T));
		if (!block)
			throw std::bad_alloc();
		return static_cast<T *>(block);
	}

	void deallocate(T *block, std::size_t) noexcept
	{
		if (const vmsrs_domain *domain = vmsrs_held_domain(number_))
			(void)vmsrs_free(domain, block);
	}

	std::uint32_t number() const noexcept { return number_; }

	template <typename U>
	bool operator==(const allocator<U> &other) const noexcept { return number_ == other.number(); }
	template <typename U>
	bool operator!=(const allocator<U> &other) const noexcept { return number_ != other.number(); }

private:
	std::uint32_t number_;
};

template <typename T>
using vector = std::vector<T, allocator<T>>;
using string = std::basic_string<char, std::char_traits<char>, allocator<char>>;
template <typename K, typename V, typename Less = std::less<K>>
using map = std::map<K, V, Less, allocator<std::pair<const K, V>>>;
template <typename K, typename V, typename Hash = std::hash<K>, typename Equal = std::equal_to<K>>
using unordered_map = std::unordered_map<K, V, Hash, Equal, allocator<std::pair<const K, V>>>;

/// A domain as a memory resource, for containers of std::pmr. See the remark on containers above.
class resource : public std::pmr::memory_resource {
public:
	explicit resource(const vmsrs_domain *domain) noexcept : domain_(domain) {}

private:
	void *do_allocate(std::size_t size, std::size_t alignment) override
	{
		void *block = vmsrs_alloc_aligned(domain_, size, alignment);

		if (!block)
			throw std::bad_alloc();
		return block;
	}

	void do_deallocate(void *block, std::size_t, std::size_t) override { (void)vmsrs_free(domain_, block); }

	bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override
	{
		auto *same = dynamic_cast<const resource *>(&other);

		return same && same->domain_ == domain_;
	}

	const vmsrs_domain *domain_;
};

/// The arena of a request as a memory resource: what it gives is gone when the request ends.
class arena : public std::pmr::memory_resource {
public:
	explicit arena(vmsrs_request *request) noexcept : request_(request) {}

private:
	void *do_allocate(std::size_t size, std::size_t alignment) override
	{
		/* It aligns to 16. */
		std::size_t more = alignment > 16 ? alignment : 0;
		void *block = size <= SIZE_MAX - more ? vmsrs_arena_alloc(request_, size + more) : nullptr;

		if (!block)
			throw std::bad_alloc();
		size += more;
		return more ? std::align(alignment, size - more, block, size) : block;
	}

	void do_deallocate(void *, std::size_t, std::size_t) override {}
	bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override { return this == &other; }

	vmsrs_request *request_;
};

class domain;

/// The request of the calling thread, as a lambda gets it. Not to be kept.
class request {
public:
	explicit request(vmsrs_request *native) noexcept : native_(native) {}
	request(const request &) = delete;
	request &operator=(const request &) = delete;

	vmsrs_request *native() const noexcept { return native_; }
	void commit(bool seal = false) { check(vmsrs_commit(native_, seal ? VMSRS_SEAL : 0)); }
	[[noreturn]] void fail(const char *message) { vmsrs_fail(message); }
	void own_fd(int fd) { check(vmsrs_own_fd(native_, fd)); }
	void disown_fd(int fd) { (void)vmsrs_disown_fd(native_, fd); }
	vmsrs::arena arena() const noexcept { return vmsrs::arena(native_); }
	inline void enter(const domain &shared);
	inline void leave(const domain &shared);

	/// Calls `*undo` if the request fails or is given up. It is outside of the request, and lives until that has ended. An
	/// exception that it throws ends it alone.
	template <typename F>
	void defer(F *undo)
	{
		auto call = [](void *argument) { (*static_cast<F *>(argument))(); };

		check(vmsrs_defer(native_, call, undo));
	}

	/// Has a variable outside of domains be what it is now if the request fails or is given up.
	template <typename T>
	void keep(T &variable)
	{
		static_assert(std::is_trivially_copyable_v<T>, "its bytes are copied back");
		check(vmsrs_keep(native_, &variable, sizeof(variable)));
	}

	/// Calls `*work` once the request is committed. It is outside of the request, and lives until then. An exception that it
	/// throws ends the process.
	template <typename F>
	void on_commit(F *work)
	{
		auto call = [](void *argument) noexcept { (*static_cast<F *>(argument))(); };

		check(vmsrs_on_commit(native_, call, work));
	}

private:
	vmsrs_request *native_;
};

/// A shared domain that a request is in until the end of the scope, unless that is left by an exception: then it is held
/// to the end of the request.
class entered {
public:
	inline entered(request &request, const domain &shared);
	inline ~entered();
	entered(const entered &) = delete;
	entered &operator=(const entered &) = delete;

private:
	request &request_;
	const domain &shared_;
	int exceptions_;
};

/// Bytes of a domain that do not change, to be sent outside of requests.
class lease {
public:
	lease() noexcept = default;
	lease(lease &&other) noexcept : native_(std::exchange(other.native_, vmsrs_lease_t{})) {}
	lease &operator=(lease &&other) noexcept
	{
		std::swap(native_, other.native_);
		return *this;
	}
	~lease() { vmsrs_lease_end(&native_); }

	explicit operator bool() const noexcept { return native_.data; }
	const char *data() const noexcept { return static_cast<const char *>(native_.data); }
	std::size_t size() const noexcept { return native_.length; }
	std::string_view view() const noexcept { return { data(), size() }; }

private:
	friend class domain;
	vmsrs_lease_t native_{};
};

namespace detail {

/// What a lambda runs as: on the caller's stack, which the request does not touch otherwise.
template <typename F>
struct work {
	using result = std::invoke_result_t<F &, request &>;
	static constexpr bool is_void = std::is_void_v<result>;
	using value = std::conditional_t<is_void, char, result>;

	F &function;
	std::exception_ptr thrown;
	/// A value if the request has ended in order; otherwise a part of one, perhaps, which is not destroyed.
	alignas(value) unsigned char place[sizeof(value)];

	static int run(vmsrs_request *native, void *argument)
	{
		auto &self = *static_cast<work *>(argument);

		try {
			request request(native);

			if constexpr (is_void)
				self.function(request);
			else
				::new (static_cast<void *>(self.place)) value(self.function(request));
			return 0;
		} catch (const abi::__forced_unwind &) {
			/* The end of the thread fails the request. */
			throw;
		} catch (...) {
			self.thrown = std::current_exception();
			return -1;
		}
	}

	/// What run() of the domain gives back: the code, and what the lambda said.
	result take(int code, int said)
	{
		if (code != VMSRS_EUNSEALED)
			check(code);
		if (said < 0)
			std::rethrow_exception(std::move(thrown));
		if constexpr (!is_void) {
			value *there = std::launder(reinterpret_cast<value *>(place));
			struct destroy {
				value *there;
				~destroy() { there->~value(); }
			} at_the_end{ there };

			check(code);
			return std::move(*there);
		} else {
			check(code);
		}
	}
};

} /* namespace detail */

/// A domain. A handle, which lives as long as the process: copies are the same domain.
class domain {
public:
	explicit domain(vmsrs_domain *native) noexcept : native_(native) {}

	vmsrs_domain *native() const noexcept { return native_; }
	std::uint32_t number() const noexcept { return vmsrs_domain_number(native_); }

	/// Runs a lambda as a request that holds the domain, and returns what it returns.
	template <typename F>
	auto run(F &&function) const
	{
		detail::work<std::remove_reference_t<F>> work{ function, {}, {} };
		int said = 0;
		int code = vmsrs_run(native_, work.run, &work, &said);

		return work.take(code, said);
	}

	template <typename F>
	auto run(const vmsrs_options &options, F &&function) const
	{
		detail::work<std::remove_reference_t<F>> work{ function, {}, {} };
		int said = 0;
		int code = vmsrs_run_with(native_, &options, work.run, &work, &said);

		return work.take(code, said);
	}

	/// Leases what a lambda finds: a std::string_view into the domain, empty if there is nothing.
	template <typename F>
	vmsrs::lease lease(F &&find) const
	{
		struct search {
			std::remove_reference_t<F> &find;
			std::exception_ptr thrown;

			static int run(vmsrs_request *native, void *argument, const void **bytes, std::size_t *length)
			{
				auto &self = *static_cast<search *>(argument);

				try {
					request request(native);
					std::string_view found = self.find(request);

					*bytes = found.empty() ? nullptr : found.data();
					*length = found.size();
					return 0;
				} catch (const abi::__forced_unwind &) {
					throw;
				} catch (...) {
					self.thrown = std::current_exception();
					return -1;
				}
			}
		} search{ find, {} };
		vmsrs::lease taken;

		check(vmsrs_lease(native_, search.run, &search, &taken.native_));
		if (search.thrown)
			std::rethrow_exception(std::move(search.thrown));
		return taken;
	}

	template <typename T>
	vmsrs::allocator<T> allocator() const noexcept { return vmsrs::allocator<T>(native_); }
	vmsrs::resource resource() const noexcept { return vmsrs::resource(native_); }

	/// Makes an object in the domain, in a request that holds it.
	template <typename T, typename... Arguments>
	T *make(Arguments &&...arguments) const
	{
		vmsrs::allocator<T> allocator(native_);
		T *block = allocator.allocate(1);

		try {
			return ::new (static_cast<void *>(block)) T(std::forward<Arguments>(arguments)...);
		} catch (...) {
			allocator.deallocate(block, 1);
			throw;
		}
	}

	/// Destroys what make() has made, and gives its block back.
	template <typename T>
	void destroy(T *object) const
	{
		if (!object)
			return;
		object->~T();
		check(vmsrs_free(native_, object));
	}

	template <typename T>
	T *root() const noexcept { return static_cast<T *>(vmsrs_root(native_)); }
	void set_root(void *root) const { check(vmsrs_set_root(native_, root)); }

	/// Deletes the domain. This handle is that of a deleted one then.
	void remove() const { check(vmsrs_domain_delete(native_)); }
	/// Empties the domain. Other copies of this handle are those of a deleted one then.
	void clear() { check(vmsrs_domain_clear(&native_)); }

	vmsrs_domain_info_t info() const
	{
		vmsrs_domain_info_t info{};

		check(vmsrs_domain_info(native_, &info));
		return info;
	}

private:
	vmsrs_domain *native_;
};

inline void request::enter(const domain &shared) { check(vmsrs_enter(native_, shared.native())); }
inline void request::leave(const domain &shared) { check(vmsrs_leave(native_, shared.native())); }

inline entered::entered(request &request, const domain &shared)
	: request_(request), shared_(shared), exceptions_(std::uncaught_exceptions())
{
	request.enter(shared);
}

inline entered::~entered()
{
	/* What cannot be left is held to the end, and committed with the request. */
	if (std::uncaught_exceptions() == exceptions_ && vmsrs_leave(request_.native(), shared_.native()) != VMSRS_OK)
		return;
}

/// An app. A handle, which lives as long as the process.
class app {
public:
	explicit app(vmsrs_app *native) noexcept : native_(native) {}

	static app open(const std::string &name)
	{
		vmsrs_app *native = nullptr;

		check(vmsrs_open(name.c_str(), &native));
		return app(native);
	}

	vmsrs_app *native() const noexcept { return native_; }
	bool is_protected() const noexcept { return vmsrs_protection(native_) == VMSRS_PROTECTION_FULL; }

	/// Opens a domain. `flags`: VMSRS_MIRROR.
	vmsrs::domain domain(std::string_view key, std::uint32_t flags = 0) const
	{
		vmsrs_domain *opened = nullptr;

		check(vmsrs_domain_open_with(native_, key.data(), key.size(), flags, &opened));
		return vmsrs::domain(opened);
	}

	void flush() const { check(vmsrs_flush(native_)); }

private:
	vmsrs_app *native_;
};

/// A mutex of the server's that is released when a request fails that has locked it. Works with std::lock_guard and
/// std::unique_lock. `repair` puts right what it guards then.
template <typename Repair>
class mutex {
public:
	explicit mutex(Repair repair) : repair_(std::move(repair))
	{
		auto call = [](void *argument) { (*static_cast<Repair *>(argument))(); };

		check(vmsrs_mutex_init(&native_, call, &repair_));
	}
	mutex(const mutex &) = delete;
	mutex &operator=(const mutex &) = delete;

	void lock() { check(vmsrs_mutex_lock(&native_)); }
	bool try_lock()
	{
		int code = vmsrs_mutex_trylock(&native_);

		if (code != VMSRS_ETIMEOUT && code != VMSRS_EHELD)
			check(code);
		return code == VMSRS_OK;
	}
	void unlock() { check(vmsrs_mutex_unlock(&native_)); }

private:
	Repair repair_;
	vmsrs_mutex_t native_{};
};

} /* namespace vmsrs */

#endif /* VMSRS_HPP */
