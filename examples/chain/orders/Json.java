import java.math.BigDecimal;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Reads and writes JSON (RFC 8259): the JDK has nothing for it. As strict as tokens need it (RFC 8725): a member that stands twice
 * is a fault, so that no two readers can see different tokens in the same bytes.
 */
final class Json {
    private static final int MAX_DEPTH = 16;

    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /** The object in text: its values are String, BigDecimal, Boolean, null, List and Map. */
    static Map<String, Object> object(String text) {
        var reader = new Json(text);
        Object value = reader.value(0);
        reader.space();
        if (reader.at != text.length()) {
            throw reader.fault("something follows");
        }
        if (!(value instanceof Map<?, ?> map)) {
            throw reader.fault("no object");
        }
        return members(map);
    }

    /** A member that is a string; null if there is none. */
    static String string(Map<String, Object> object, String name) {
        Object value = object.get(name);
        if (value == null || value instanceof String) {
            return (String) value;
        }
        throw new IllegalArgumentException(name + " is no string");
    }

    /** A member that is a list of objects; empty if there is none. */
    static List<Map<String, Object>> objects(Map<String, Object> object, String name) {
        var found = new ArrayList<Map<String, Object>>();
        for (Object value : list(object, name)) {
            if (!(value instanceof Map<?, ?> map)) {
                throw new IllegalArgumentException(name + " holds something that is no object");
            }
            found.add(members(map));
        }
        return found;
    }

    static List<?> list(Map<String, Object> object, String name) {
        Object value = object.get(name);
        if (value == null) {
            return List.of();
        }
        if (value instanceof List<?> list) {
            return list;
        }
        throw new IllegalArgumentException(name + " is no list");
    }

    static Map<String, Object> members(Object value) {
        var found = new LinkedHashMap<String, Object>();
        if (value instanceof Map<?, ?> map) {
            map.forEach((name, member) -> found.put((String) name, member));
        }
        return found;
    }

    static String write(Object value) {
        var out = new StringBuilder();
        write(out, value);
        return out.toString();
    }

    private static void write(StringBuilder out, Object value) {
        if (value instanceof Map<?, ?> map) {
            String separator = "{";
            for (var entry : map.entrySet()) {
                out.append(separator);
                write(out, entry.getKey());
                out.append(':');
                write(out, entry.getValue());
                separator = ",";
            }
            out.append(map.isEmpty() ? "{}" : "}");
        } else if (value instanceof List<?> list) {
            String separator = "[";
            for (Object entry : list) {
                out.append(separator);
                write(out, entry);
                separator = ",";
            }
            out.append(list.isEmpty() ? "[]" : "]");
        } else if (value instanceof String string) {
            quote(out, string);
        } else {
            out.append(value);
        }
    }

    private static void quote(StringBuilder out, String string) {
        out.append('"');
        for (char c : string.toCharArray()) {
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < ' ') {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        out.append('"');
    }

    private Object value(int depth) {
        if (depth > MAX_DEPTH) {
            throw fault("too deep");
        }
        space();
        switch (peek()) {
            case '{':
                return map(depth);
            case '[':
                return list(depth);
            case '"':
                return quoted();
            case 't':
                return word("true", true);
            case 'f':
                return word("false", false);
            case 'n':
                return word("null", null);
            default:
                return number();
        }
    }

    private Map<String, Object> map(int depth) {
        var found = new LinkedHashMap<String, Object>();
        at++;
        if (next('}')) {
            return found;
        }
        do {
            space();
            String name = quoted();
            demand(':');
            if (found.containsKey(name)) {
                throw fault("a member stands twice");
            }
            found.put(name, value(depth + 1));
        } while (next(','));
        demand('}');
        return found;
    }

    private List<Object> list(int depth) {
        var found = new ArrayList<Object>();
        at++;
        if (next(']')) {
            return found;
        }
        do {
            found.add(value(depth + 1));
        } while (next(','));
        demand(']');
        return found;
    }

    private String quoted() {
        if (peek() != '"') {
            throw fault("no string");
        }
        var out = new StringBuilder();
        for (at++; peek() != '"'; at++) {
            char c = peek();
            if (c < ' ') {
                throw fault("a control character");
            }
            out.append(c == '\\' ? escape() : c);
        }
        at++;
        return out.toString();
    }

    private char escape() {
        at++;
        char c = peek();
        if (c == 'u') {
            if (at + 4 >= text.length() || !text.substring(at + 1, at + 5).matches("[0-9a-fA-F]{4}")) {
                throw fault("a broken escape");
            }
            at += 4;
            return (char) Integer.parseInt(text.substring(at - 3, at + 1), 16);
        }
        int known = "\"\\/bfnrt".indexOf(c);
        if (known < 0) {
            throw fault("a broken escape");
        }
        return "\"\\/\b\f\n\r\t".charAt(known);
    }

    private BigDecimal number() {
        int from = at;
        while (at < text.length() && "+-0123456789.eE".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
        String digits = text.substring(from, at);
        if (digits.length() > 32 || !digits.matches("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]{1,2})?")) {
            throw fault("no value");
        }
        return new BigDecimal(digits);
    }

    private Object word(String word, Object value) {
        if (!text.startsWith(word, at)) {
            throw fault("no value");
        }
        at += word.length();
        return value;
    }

    private boolean next(char c) {
        space();
        if (peek() != c) {
            return false;
        }
        at++;
        return true;
    }

    private void demand(char c) {
        if (!next(c)) {
            throw fault("no " + c);
        }
    }

    private void space() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private char peek() {
        if (at >= text.length()) {
            throw fault("it ends too early");
        }
        return text.charAt(at);
    }

    private IllegalArgumentException fault(String what) {
        return new IllegalArgumentException("JSON, byte " + at + ": " + what); // never the text: it may be a token
    }
}
